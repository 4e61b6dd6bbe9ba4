"""What the corpora below a root hold, entry by entry: every row used, removed by a rule, or quarantined with its reason."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import CleaningConfig, CorpusConfig
from gemma_keras.data.cleaning.rules import mend
from gemma_keras.data.pools.accounts import Account
from gemma_keras.data.progress import Pace, Reporter
from gemma_keras.data.reading.finding import below
from gemma_keras.data.sources import ALL_KINDS, SOURCES, Origin, locate, read_corpus
from gemma_keras.data.sources.base import Corpus

REASONS_SHOWN = 3

_PAGE = """\
# Corpora

Written by `python -m scripts.describe_data --workdir=DIR --config.data.root=CORPORA`.

## What can be named in a configuration

| name | type | published as | licence | a row |
|---|---|---|---|---|
{sources}
## What was read

Of the folder that was given: of most corpora a slice, and for some a stand-in of another schema that the entry
reads as well. Source rows = used + removed by a rule + quarantined. Duplicates are not looked for here. A row can
make several records (a translation in both directions), and several rows one (the turns of a dialogue).

| corpus | files | rows | used | records | removed | quarantined | mended |
|---|---:|---:|---:|---:|---|---|---|
{readings}
{count} readings, {total:,} rows, all accounted for.
"""


@dataclasses.dataclass(slots=True, kw_only=True)
class Audit(Account):
    """The account of one corpus, whose files are `paths`; `records` came of the rows that are used."""

    paths: tuple[Path, ...]
    records: int = 0

    @property
    def used(self) -> int:
        """Number of source rows of which a record is used."""
        return self.rows_in - self.skipped.total() - self.quarantined


def audit(corpora: tuple[CorpusConfig, ...], root: Path, progress: Reporter) -> Iterator[Audit]:
    """Reads every entry of the table that has files below `root`, all kinds of it, and then `corpora` besides."""
    known = [CorpusConfig(name=name, kinds=(ALL_KINDS,)) for name in SOURCES]
    for corpus in (*known, *corpora):
        try:
            origin = locate(corpus, root)
        except UserError:
            origin = Origin(corpus=corpus, root=root)
        if origin.files:
            yield _read(origin, progress)
        elif corpus not in known:
            progress(f"{root} has no {corpus.path or corpus.name}")


def unread(audits: list[Audit], root: Path) -> list[Path]:
    """What lies below `root`, relative to it, and none of the entries reads: files, and hidden folders as a whole."""
    read = {path for audit in audits for path in audit.paths}
    found = below(root, lambda path: True)
    return sorted(p.relative_to(root) for p in (*found.files, *(p for p, _ in found.not_read)) if p not in read)


def _read(origin: Origin, progress: Reporter) -> Audit:
    result = Audit(corpus=origin.corpus, paths=origin.files)
    pace = Pace(f"read {origin.corpus.name}", progress)
    for row in read_corpus(origin):
        for record in row.records:
            result.mended.update(mend(record, CleaningConfig()))
        result.records += result.add_visible(row)
        pace.done(result.rows_in)
    return result


def page(audits: list[Audit], left: list[Path]) -> str:
    """docs/data.md: the table of sources, the account of the corpora at hand, and the files that nothing reads."""
    text = _PAGE.format(
        sources="".join(map(_entry, SOURCES.values())),
        readings="".join(map(_line, audits)),
        count=len(audits),
        total=sum(audit.rows_in for audit in audits),
    )
    if left:
        folders = Counter(path.parts[0] for path in left)
        told = ", ".join(f"{folder} ({count})" for folder, count in folders.items())
        text += f"\nFiles that no entry reads, by folder: {told}.\n"
    return text


def _entry(source: Corpus) -> str:
    schema = source.schema.replace("|", "\\|")
    return f"| `{source.name}` | {source.type or 'several'} | {source.hub_id} | {source.licence} | {schema} |\n"


def _line(audit: Audit) -> str:
    name = f"`{audit.corpus.name}`" + (f" at {audit.corpus.path}" if audit.corpus.path else "")
    counts = (_counts(counter) for counter in (audit.skipped, audit.reasons, audit.mended))
    return (
        f"| {name} | {len(audit.paths)} | {audit.rows_in} | {audit.used} | {audit.records} | {' | '.join(counts)} |\n"
    )


def _counts(counter: Counter[str]) -> str:
    shown = [f"{count} {name.replace('|', '/')}" for name, count in counter.most_common(REASONS_SHOWN)]
    more = len(counter) - len(shown)
    return ", ".join(shown) + (f" and {more} more reasons" if more > 0 else "")
