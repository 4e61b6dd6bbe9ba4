"""The corpora that are known by name, and how their rows are read.

To add one, write a function `row -> records` in the module of its kind and an entry in that module's `SOURCES`.
"""

import difflib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gemma_keras import builtin
from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import CorpusConfig
from gemma_keras.data.reading.elements import ReadRow
from gemma_keras.data.reading.finding import FoundFiles, describe, find
from gemma_keras.data.reading.readers import SUFFIXES, read_file, read_hub, suffix_of
from gemma_keras.data.records import BadRow, Record, SkippedRow, validate
from gemma_keras.data.sources import dialogues, exams, instructions, preferences, texts
from gemma_keras.data.sources import single_tasks as tasks
from gemma_keras.data.sources.base import FILE, Corpus, Row

SOURCES: dict[str, Corpus] = {
    source.name: source
    for module in (instructions, dialogues, tasks, texts, preferences, exams)
    for source in module.SOURCES
}

ALL_KINDS = "all"
"""In a corpus's `kinds`: every kind, whatever the entry would choose by itself."""

OTHER_KIND = "other_kind"
"""Rule of the rows of a kind that is not taken."""


@dataclass(slots=True, kw_only=True)
class SourceRow:
    """One raw row (or a group of `rows` that is read together): its records, the rule that skips it, or why it is quarantined.

    `row` counts from 1 in its file; 0 stands for the file as a whole.
    """

    file: str
    row: int
    records: list[Record]
    rows: int = 1
    skipped: str = ""
    quarantined: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the rows of a corpus come from.

    Attributes:
        kind: for reports: files, stand-in (files of another corpus of the same schema), builtin (the package's own rows), hub, or
            earlier stage.
        root: the folder that `files` are named from.
        not_read: what else lies where the files were found, with the reason.
        split: of an earlier stage, the folder of its train or valid rows; `fingerprint` says which rows these are.
    """

    corpus: CorpusConfig
    root: Path
    kind: str = "files"
    files: tuple[Path, ...] = ()
    not_read: tuple[tuple[Path, str], ...] = ()
    split: Path | None = None
    fingerprint: str = ""

    def shown_not_read(self) -> list[tuple[str, str]]:
        """`not_read` as reports name it."""
        return [(shown_path(path, self.root), reason) for path, reason in self.not_read]


def get_source(name: str) -> Corpus:
    """The entry of `SOURCES`.

    Raises:
        UserError: there is none of this name.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see docs/data.md for those that are known"
        raise UserError(f"no corpus is called {name!r}: {hint}")
    return SOURCES[name]


def locate(config: CorpusConfig, root: Path, missing: str = "error") -> Origin:
    """Finds a corpus: its hub id, its path, or its usual places under `root`; files are sorted by path.

    Args:
        missing: "builtin" to take the rows of this corpus that come with the package where `root` has none.

    Raises:
        UserError: there are none; it names the places that were looked at.
    """
    source = get_source(config.name)
    if config.hub:
        return Origin(corpus=config, root=root, kind="hub")
    usual = source.places or (source.name,)
    places = (config.path,) if config.path else usual
    found = _first_found(places, root, source)
    if found.files:
        first = found.files[0].relative_to(root).parts[0] if found.files[0].is_relative_to(root) else ""
        kind = "files" if config.path or first == source.name else "stand-in"
        return Origin(corpus=config, root=root, kind=kind, files=found.files, not_read=found.not_read)
    if missing == "builtin":
        files = _first_found(usual, builtin.CORPUS, source).files
        if files:
            return Origin(corpus=config, root=builtin.CORPUS, kind="builtin", files=files)
    looked = ", ".join(str(root / place) for place in places)
    if found.not_read:
        looked += f", where there is only {describe([(shown_path(path, root), why) for path, why in found.not_read])}"
    raise UserError(
        f"no files of corpus {config.name!r} ({', '.join((*SUFFIXES, *source.suffixes))}) in {looked}; set data.root to the "
        "folder of corpora, or the corpus's path or hub, or take it out of the configuration"
        + ("; the package has no such rows either" if missing == "builtin" else ", or set data.missing to builtin")
    )


def read_corpus(origin: Origin) -> Iterator[SourceRow]:
    """Every row of a corpus, in the order of its files, each with its validated records or what is wrong with it."""
    corpus, source = origin.corpus, get_source(origin.corpus.name)
    if corpus.hub:
        yield from _read_rows(source, corpus.kinds, f"hub:{corpus.hub}", read_hub(corpus.hub))
    for path in origin.files:
        rows = read_file(
            path, text_unit=source.text_unit, columns=source.columns, plain=suffix_of(path) in source.suffixes
        )
        yield from _read_rows(source, corpus.kinds, shown_path(path, origin.root), rows)


def shown_path(path: Path, root: Path) -> str:
    """A source file as reports and row ids name it: relative to the data root where it lies within."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _read_rows(source: Corpus, kinds: tuple[str, ...], file: str, reads: Iterator[ReadRow]) -> Iterator[SourceRow]:
    for _, together in itertools.groupby(reads, lambda read: _key(source, *read)):
        numbers, rows, reasons = zip(*together)
        yield _source_row(source, kinds, file, numbers[0], [row for row in rows if row is not None], reasons[0])


def _key(source: Corpus, number: int, row: Row | None, reason: str) -> int | str:
    """Equal for consecutive rows that are read together."""
    if source.group is None or row is None:
        return number
    try:
        return source.group(row)
    except BadRow:
        return ""  # read alone, it says by itself what is wrong with it


def _source_row(
    source: Corpus, kinds: tuple[str, ...], file: str, number: int, rows: list[Row], reason: str
) -> SourceRow:
    result = SourceRow(file=file, row=number, records=[], rows=max(1, len(rows)))
    try:
        if not rows:
            raise BadRow(reason)
        if source.names_file:
            rows = [{**row, FILE: file} for row in rows]
        wanted = kinds or source.kinds
        if source.kind is not None and wanted and ALL_KINDS not in wanted and source.kind(rows[0]) not in wanted:
            raise SkippedRow(OTHER_KIND)
        records = source.read(rows[0] if source.group is None else rows)
        for part, record in enumerate(records):
            record.source = source.name
            record.parent = f"{source.name}/{file}:{number}"
            record.part = part if len(records) > 1 else None
            validate(record)
        result.records = records
    except BadRow as error:
        result.quarantined = str(error)
    except SkippedRow as rule:
        result.skipped = str(rule)
    return result


def _first_found(places: tuple[str, ...], root: Path, source: Corpus) -> FoundFiles:
    """What the first of the places has that has any file; what is not read in all of them where none has."""
    suffixes = (*SUFFIXES, *source.suffixes)
    not_read: list[tuple[Path, str]] = []
    for place in places:
        found = find(place, root, lambda path: suffix_of(path) in suffixes)
        if found.files:
            return found
        not_read += found.not_read
    return FoundFiles((), tuple(not_read))
