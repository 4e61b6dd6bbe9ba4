"""From the corpora of a configuration to clean pools of training and validation records."""

import itertools
import json
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import CorpusConfig, DataConfig
from gemma_keras.data.cleaning.contamination import Contamination
from gemma_keras.data.cleaning.near_duplicates import NearDuplicates
from gemma_keras.data.cleaning.rules import contents
from gemma_keras.data.mixing.mixture import validation_counts
from gemma_keras.data.pools import pool as pooling
from gemma_keras.data.pools.accounts import Account, told_set_aside
from gemma_keras.data.pools.holding_out import remove_held_out, set_apart
from gemma_keras.data.pools.pool import Pool, read_pool
from gemma_keras.data.pools.spool import Spool
from gemma_keras.data.prepared import ROWS_FILE, is_current, read_report
from gemma_keras.data.progress import Pace, Reporter
from gemma_keras.data.reading.finding import describe
from gemma_keras.data.records import ChatRecord, PreferenceRecord, Record
from gemma_keras.data.sources import Origin, SourceRow, get_source, locate, read_corpus

EARLIER = "earlier stage"


Origins = dict[str, list[Origin]]
"""By use: `train`, `valid`, `earlier_valid` (validation rows of earlier stages, of all their corpora) and `contamination`."""


def find_origins(config: DataConfig, root: Path, progress: Reporter) -> Origins:
    """Finds every corpus before any is read.

    Raises:
        UserError: one is missing.
    """
    earlier = [(Path(folder), _earlier_report(Path(folder))) for folder in config.earlier]
    train = []
    for corpus in config.corpora:
        held = [stage for stage in earlier if _offers(stage[1], corpus, config.corpora, progress)]
        origin = _earlier(corpus, root, *held[0], "train") if held else None
        train.append(origin or locate(corpus, root, config.missing))
    earlier_valid = [
        _earlier(CorpusConfig(name=name), root, folder, report, "valid")
        for folder, report in earlier
        for name in report["validation"]["by_source"]
        if not any(entry["documents"] for entry in _entries(report["validation"], name))
    ]
    contamination = []
    for entry in config.cleaning.contamination:
        name, _, path = entry.partition(":")
        get_source(name)
        try:
            contamination.append(locate(CorpusConfig(name=name, path=path), root, config.missing))
        except UserError:
            # The rule is a safeguard: data that cannot be had must not stop a run, nor be passed over in silence.
            progress(f"not compared with {entry}, of which {root} has no files")
    valid = [locate(corpus, root, config.missing) for corpus in config.validation]
    return {"train": train, "valid": valid, "earlier_valid": earlier_valid, "contamination": contamination}


def collect(
    config: DataConfig,
    origins: Origins,
    folder: Path,
    usable: Callable[[list[Record]], list[bool]],
    progress: Reporter,
) -> tuple[list[Pool], list[Pool], dict[str, str]]:
    """Reads and cleans all corpora; raw rows that cannot be read go to `folder`/quarantine.jsonl.

    Args:
        usable: whether records fit into a row; asked of those that may be set apart for validation.

    Returns:
        the pools of training and of validation rows; and for each entry of `cleaning.contamination`, whether it was compared.
    """
    contamination = _contamination(config, origins["contamination"], progress)
    threshold = config.cleaning.near_duplicates
    near_duplicates = NearDuplicates(threshold, folder) if threshold else None
    with (folder / "quarantine.jsonl").open("w", encoding="utf-8") as quarantine:

        def read(origin: Origin, compared: Contamination | None = None) -> Pool:
            pace = Pace(f"read {origin.corpus.name}", progress)
            rows, spool = _rows(origin), Spool(folder)
            pool = read_pool(origin, rows, spool, quarantine, pace, config.cleaning, near_duplicates, compared)
            if pool.not_read:
                progress(f"{origin.corpus.name}: not read: {describe(pool.not_read)}")
            stand_in = f", {pool.files[0].partition('/')[0]} in its place" if origin.kind == "stand-in" else ""
            pace.finish(pool.rows_in, f" from {len(pool.files)} files{stand_in}")
            return pool

        valid = [read(origin) for origin in origins["valid"]]
        earlier_valid = [read(origin) for origin in origins["earlier_valid"]]
        train = [read(origin, contamination) for origin in origins["train"]]
    # Every validation row counts, also those that a limit leaves out.
    remove_held_out(train, [*valid, *earlier_valid])
    if config.cleaning.duplicates:
        pooling.remove_duplicates(valid)
        pooling.remove_duplicates(train)
    if near_duplicates:
        pooling.remove_near_duplicates(train, [*valid, *earlier_valid], near_duplicates)
    if config.validation_rows:
        # Of a corpus of an earlier stage from that stage's validation rows, else from training's.
        held_out = {pool.corpus.name: pool for pool in earlier_valid}
        sources = [held_out.get(pool.corpus.name, pool) if pool.origin == EARLIER else pool for pool in train]
        counts = validation_counts(train, sources, config.validation_rows)
        valid = set_apart(sources, counts, config.seed, usable)
        remove_held_out(train, valid)
    found = contamination.corpora if contamination else []
    compared = {
        entry: "compared" if entry.partition(":")[0] in found else "not compared: no files"
        for entry in config.cleaning.contamination
    }
    return train, valid, compared


def _contamination(config: DataConfig, origins: list[Origin], progress: Reporter) -> Contamination | None:
    """The evaluation texts that no training row may hold; None where there are none."""
    if not origins:
        return None
    progress(f"reading the evaluation texts of {', '.join(origin.corpus.name for origin in origins)}")
    texts = (
        (origin.corpus.name, text)
        for origin in origins
        for row in _rows(origin)
        for record in row.records
        for text in get_source(origin.corpus.name).bodies(record)
    )
    return Contamination(texts, config.cleaning.contamination_ngram)


def set_aside(pools: list[Pool]) -> list[str]:
    """A line for each corpus of which rows cannot be read, or rules have removed many; see `told_set_aside`."""
    return list(filter(None, (told_set_aside(pool, pool.counts()) for pool in pools)))


def training_texts(config: DataConfig) -> Iterator[str]:
    """The texts of all training corpora, as they are in the files, for a tokenizer.

    Raises:
        UserError: a corpus is missing, or has no usable row.
    """
    for origin in find_origins(config, Path(config.root), lambda line: None)["train"]:
        account, used = Account(corpus=origin.corpus), 0
        for row in _rows(origin):
            used += account.add_visible(row)
            for record in row.records:
                yield from contents(record)
        if not used:
            raise account.nothing_usable()


def _earlier_report(folder: Path) -> dict[str, Any]:
    try:
        report = read_report(folder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"data.earlier names {folder}, which holds no prepared data ({error}); give the data folder of an earlier "
            "stage's workdir"
        ) from error
    if not is_current(report):
        raise UserError(
            f"data.earlier names {folder}, which another version of this package prepared; prepare it again, by the command that "
            "it was prepared by (the rows stay the same), or with scripts.prepare_data and the configuration of that stage"
        )
    return report


def _entries(report: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """What a report says of the corpus; of one that is named twice, both."""
    return [entry for entry in report["corpora"].values() if entry["name"] == name]


def _offers(
    report: dict[str, Any], corpus: CorpusConfig, corpora: tuple[CorpusConfig, ...], progress: Reporter
) -> bool:
    """Whether an earlier stage holds just this corpus: the same files and kinds of it, as conversations."""
    entries = _entries(report, corpus.name)
    if not entries:
        return False
    same = [entry for entry in entries if (entry["path"], tuple(entry["kinds"])) == (corpus.path, corpus.kinds)]
    alone = len(entries) == 1 == sum(other.name == corpus.name for other in corpora)
    if same and alone and not same[0]["documents"]:
        return True
    progress(
        f"{corpus.name} is drawn from its files: the earlier stage has documents, other files or other kinds of it"
    )
    return False


def _earlier(corpus: CorpusConfig, root: Path, folder: Path, report: dict[str, Any], split: str) -> Origin:
    fingerprint = f"{report['fingerprint']} {split}"
    return Origin(corpus=corpus, root=root, kind=EARLIER, split=folder / split, fingerprint=fingerprint)


def _rows(origin: Origin) -> Iterator[SourceRow]:
    return _earlier_rows(origin.split, origin.corpus.name) if origin.split else read_corpus(origin)


def _earlier_rows(split: Path, name: str) -> Iterator[SourceRow]:
    """The records of one corpus in an earlier stage's split, by parent; those of one come together, as one source row.

    Raises:
        UserError: the split is damaged.
    """
    try:
        with pa.memory_map(str(split / ROWS_FILE)) as file:
            table = pa.ipc.open_stream(file).read_all()
            mine = pc.and_(pc.equal(table["source"], name), pc.is_valid(table["record"]))
            places = np.flatnonzero(mine.to_numpy())
            table = table.select(["type", "parent", "part", "record"])
            parents = table["parent"].take(places).combine_chunks()
            places = places[pc.sort_indices(parents)]  # stable
            rows = (table.slice(place, 1).to_pylist()[0] for place in places)
            for _, same in itertools.groupby(rows, key=itemgetter("parent")):
                yield SourceRow(file=f"earlier {split.name}", row=0, records=[_restored(row, name) for row in same])
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"the earlier stage's data in {split} is damaged ({str(error).splitlines()[0]}); prepare it again"
        ) from error


def _restored(row: dict[str, Any], source: str) -> Record:
    value = json.loads(row.pop("record")) | row | {"source": source}
    return ChatRecord(**value) if "messages" in value else PreferenceRecord(**value)
