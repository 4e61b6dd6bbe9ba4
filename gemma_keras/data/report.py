"""The report on a prepared dataset: numbers, a page to read, charts, and the rows set aside."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gemma_keras.data.encoding.rendering import Rendered
from gemma_keras.data.mixing.mixture import Mixture
from gemma_keras.data.pools.outcomes import NOT_DRAWN, SET_APART, UNDECIDED, USED
from gemma_keras.data.pools.pool import Pool
from gemma_keras.data.reading.finding import describe
from gemma_keras.data.records import TextRecord


def split_report(mixture: Mixture, rendered: Rendered, sequence_length: int) -> dict[str, Any]:
    """The figures of one split.

    `rows_in`, `used`, `removed` and `quarantined` count source rows and balance (one is removed when none of its records is
    used; `removed_records` counts all of these); `by_*`, `truncated`, `turns_cut` and `unlearnt` count the records made of them;
    `rows` and `token_lengths` the prepared rows (a long document makes several). `pairs`: rows 2i and 2i + 1 are the sides of
    a preference pair, and packed rows hold pairs. `corpora` has for each corpus where it came from, its own balance, how many
    records its share implies and how many it gave.
    """
    pools = mixture.pools
    corpora: dict[str, Any] = {}
    for number, pool in enumerate(pools):
        entry = _corpus(pool, mixture.wanted[number], mixture.available[number], rendered.by_pool[number])
        name = pool.corpus.name
        corpora[name if name not in corpora else f"{name}#{len(corpora)}"] = entry
    removed = _sorted(*(entry["removed"] for entry in corpora.values()))
    totals = {key: sum(entry[key] for entry in corpora.values()) for key in ("rows_in", "used", "quarantined")}
    assert totals["rows_in"] == totals["used"] + sum(removed.values()) + totals["quarantined"], (totals, removed)
    lengths = rendered.lengths
    tokens = int(lengths.sum(dtype=np.int64))
    packed = rendered.packed_rows[0]
    return {
        **totals,
        "removed": removed,
        "removed_records": _sorted(*(pool.removed_records() for pool in pools)),
        "quarantined_for": dict(sum((pool.reasons for pool in pools), Counter()).most_common()),
        "mended": _sorted(*(pool.mended for pool in pools)),
        "records": rendered.by_type.total(),
        **{name: rendered.shortened[name] for name in ("truncated", "turns_cut", "unlearnt")},
        "by_source": _sorted(*({entry["name"]: entry["given"]} for entry in corpora.values())),
        "by_type": _sorted(rendered.by_type),
        "by_system_prompt": _sorted(rendered.by_system_prompt),
        "corpora": corpora,
        "pairs": rendered.pairs,
        "rows": len(lengths),
        "tokens": tokens,
        "token_lengths": _lengths(lengths),
        "packed_rows": packed,
        "packed_rows_of_editions": rendered.packed_rows,
        "useful_token_share": tokens / (packed * sequence_length * (2 if rendered.pairs else 1)) if packed else 0.0,
        "length_histogram": np.histogram(lengths, bins=32, range=(0, sequence_length))[0].tolist(),
    }


def _sorted(*counters: Mapping[str, int]) -> dict[str, int]:
    """The sums of some counters, by name."""
    return dict(sorted(sum(map(Counter, counters), Counter()).items()))


def _corpus(pool: Pool, wanted: int, available: int, given: int) -> dict[str, Any]:
    fates = pool.counts()
    used = fates.pop(USED, 0)
    assert UNDECIDED not in fates, pool.corpus.name
    return {
        "name": pool.corpus.name,
        "origin": pool.origin,
        "files": pool.files,
        "rows_in": pool.rows_in,
        "used": used,
        "removed": _sorted(fates),
        "quarantined": pool.quarantined,
        "quarantined_for": dict(pool.reasons.most_common()),
        "not_read": [list(entry) for entry in pool.not_read],
        "removed_records": _sorted(pool.removed_records()),
        "kinds": list(pool.corpus.kinds),
        "path": pool.corpus.path,
        "documents": isinstance(pool.record(0), TextRecord) if len(pool.fates) else False,
        "available": available,
        "wanted": wanted,
        "given": given,
        "different": int(pool.fates.used().sum()),
    }


def write_report(folder: Path, report: dict[str, Any], failures: list[dict[str, Any]]) -> None:
    """Writes charts, report.md, the failed system prompts if there are any and, last, report.json."""
    if failures:
        lines = (json.dumps(failure, ensure_ascii=False) + "\n" for failure in failures)
        (folder / "system_prompt_failures.jsonl").write_text("".join(lines), encoding="utf-8")
    _charts(folder / "charts", report)
    (folder / "report.md").write_text(_page(report), encoding="utf-8")
    text = json.dumps(report, ensure_ascii=False, indent=2, sort_keys=True)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")


def _lengths(lengths: np.ndarray) -> dict[str, float]:
    lengths = lengths if len(lengths) else np.zeros(1)
    return {
        "mean": round(float(lengths.mean()), 2),
        "median": float(np.median(lengths)),
        "p90": round(float(np.percentile(lengths, 90)), 2),
        "max": int(lengths.max()),
    }


def _page(report: dict[str, Any]) -> str:
    lines = ["# Prepared data", ""]
    for title, part in (("Training", report), ("Validation", report["validation"])):
        lengths = part["token_lengths"]
        left_over = sum(part["removed"].get(rule, 0) for rule in (NOT_DRAWN, SET_APART))
        lines += [
            f"## {title}",
            "",
            f"{part['rows_in']} source rows = {part['used']} used + {left_over} left over (not drawn, or set apart for "
            f"validation) + {sum(part['removed'].values()) - left_over} removed by rules + {part['quarantined']} quarantined. "
            f"{part['records']} records make {part['rows']} rows with {part['tokens']} "
            f"tokens (mean {lengths['mean']}, median {lengths['median']}, 90th percentile {lengths['p90']}, "
            f"longest {lengths['max']}); of conversations beyond {report['sequence_length']} tokens {part['turns_cut']} lost "
            f"whole turns and {part['truncated']} the end of their answer. {part['unlearnt']} conversations have turns "
            f"that are marked not to be learnt and carry no loss. {part['packed_rows']} packed rows, useful token "
            f"share {part['useful_token_share']:.4f}.",
            "",
            *_corpora_table(part["corpora"]),
        ]
        for name in ("by_type", "by_system_prompt", "removed", "removed_records", "quarantined_for", "mended"):
            lines += _markdown_table(name, part[name])
    lines.append(
        f"Training records whose content is also a validation record's: {report['overlap']}; whose question is: "
        f"{report['question_overlap']}."
    )
    if report["system_prompt_failures"]:
        lines.append(
            f"{report['system_prompt_failures']} conversations got a fixed system prompt, since none could be had for them: see "
            "system_prompt_failures.jsonl."
        )
    if report["contamination"]:
        compared = ", ".join(f"{name} ({how})" for name, how in report["contamination"].items())
        lines.append(f"Evaluation texts looked for in the training rows: {compared}.")
    lines += ["", "## Files", ""]
    for split, part in (("", report), (" (validation)", report["validation"])):
        for name, corpus in part["corpora"].items():
            files = corpus["files"]
            shown = ", ".join(files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
            not_read = describe([(path, reason) for path, reason in corpus["not_read"]])
            lines.append(
                f"- {name}{split}, {corpus['origin']}: {shown}" + (f"; not read: {not_read}" if not_read else "")
            )
    return "\n".join(lines) + "\n"


def _corpora_table(corpora: dict[str, Any]) -> list[str]:
    """Which corpus gave what; a corpus that could not give its share, or only by repeating rows, says so."""
    lines = [
        "| corpus | from | source rows | used | removed | quarantined | wanted | given | |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, corpus in corpora.items():
        note = ""
        if corpus["given"] < corpus["wanted"]:
            note = f"{corpus['wanted'] - corpus['given']} too few"
        elif corpus["given"] > corpus["different"]:
            note = f"{corpus['different']} different ones, repeated"
        lines.append(
            f"| {name} | {corpus['origin']} | {corpus['rows_in']} | {corpus['used']} | {sum(corpus['removed'].values())} "
            f"| {corpus['quarantined']} | {corpus['wanted']} | {corpus['given']} | {note} |"
        )
    return [*lines, ""] if corpora else []


def _markdown_table(name: str, counts: dict[str, int]) -> list[str]:
    if not counts:
        return []
    total = sum(counts.values())
    rows = [f"| {key} | {count} | {100 * count / total:.2f} % |" for key, count in counts.items()]
    return [f"| {name} | number | share |", "| --- | ---: | ---: |", *rows, ""]


def _charts(folder: Path, report: dict[str, Any]) -> None:
    # Imported here: it takes long, and most users of this package never draw.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    folder.mkdir()
    for name, title in (
        ("by_source", "records by source"),
        ("by_type", "records by type"),
        ("by_system_prompt", "conversations by system prompt"),
        ("removed", "source rows removed, by rule"),
        ("length_histogram", "rows by tokens"),
    ):
        figure = Figure(figsize=(10, 4))
        figure.subplots_adjust(left=0.23, right=0.95, wspace=0.9, top=0.92, bottom=0.12)
        parts = (("training", report), ("validation", report["validation"]))
        for axes, (label, part) in zip(figure.subplots(1, 2), parts, strict=True):
            axes.set_title(f"{label}: {title}", fontsize=8)
            axes.tick_params(labelsize=7)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            values = part[name]
            if not values:
                axes.set_axis_off()
                axes.text(0.5, 0.5, "none", ha="center")
            elif isinstance(values, dict):
                bars = axes.barh(list(values), list(values.values()))
                axes.bar_label(bars, [f"{count:,}" for count in values.values()], padding=2, fontsize=7)
                axes.margins(x=0.2)
                axes.invert_yaxis()
            else:
                width = report["sequence_length"] / len(values)
                axes.bar((np.arange(len(values)) + 0.5) * width, values, width=width)
                axes.set_xlabel("tokens", fontsize=7)
        figure.savefig(folder / f"{name}.png", dpi=100)
