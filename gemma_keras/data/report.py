"""The report on a prepared dataset: numbers, a page to read, charts, and the rows set aside."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from gemma_keras.data.pools import USED, Pool
from gemma_keras.data.records import Quarantined


def split_report(
    pools: list[Pool],
    lengths: np.ndarray,
    *,
    packed_rows: int,
    sequence_length: int,
    by_source: Counter[str],
    by_type: Counter[str],
    by_system_prompt: Counter[str],
    truncated: int,
) -> dict[str, Any]:
    """The figures of one split.

    `rows_in`, `used`, `removed` and `quarantined` count source rows and balance; `by_*` and `truncated` count the records
    made of them; `rows` and `token_lengths` the prepared rows (a long document makes several).
    """
    fates: Counter[str] = sum((pool.fates() for pool in pools), Counter())
    rows_in = sum(pool.rows_in for pool in pools)
    used = fates.pop(USED, 0)
    quarantined = sum(len(pool.quarantined) for pool in pools)
    assert "" not in fates and rows_in == used + fates.total() + quarantined, (rows_in, used, fates, quarantined)
    tokens = int(lengths.sum())
    return {
        "rows_in": rows_in,
        "used": used,
        "removed": dict(sorted(fates.items())),
        "quarantined": quarantined,
        "records": by_source.total(),
        "truncated": truncated,
        "by_source": dict(sorted(by_source.items())),
        "by_type": dict(sorted(by_type.items())),
        "by_system_prompt": dict(sorted(by_system_prompt.items())),
        "rows": len(lengths),
        "tokens": tokens,
        "token_lengths": _lengths(lengths),
        "packed_rows": packed_rows,
        "useful_token_share": tokens / (packed_rows * sequence_length) if packed_rows else 0.0,
        "length_histogram": np.histogram(lengths, bins=32, range=(0, sequence_length))[0].tolist(),
    }


def write_report(folder: Path, report: dict[str, Any], quarantined: list[Quarantined]) -> None:
    """Writes quarantine.jsonl, charts, report.md and, last, report.json."""
    with (folder / "quarantine.jsonl").open("w", encoding="utf-8") as file:
        for row in quarantined:
            file.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n")
    _charts(folder / "charts", report)
    (folder / "report.md").write_text(_page(report), encoding="utf-8")
    text = json.dumps(report, ensure_ascii=False, indent=2, sort_keys=True)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")


def _lengths(lengths: np.ndarray) -> dict[str, float]:
    if not len(lengths):
        return {"mean": 0.0, "median": 0.0, "p90": 0.0, "max": 0}
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
        lines += [
            f"## {title}",
            "",
            f"{part['rows_in']} source rows = {part['used']} used + {sum(part['removed'].values())} removed "
            f"+ {part['quarantined']} quarantined. {part['records']} records make {part['rows']} rows with {part['tokens']} "
            f"tokens (mean {lengths['mean']}, median {lengths['median']}, 90th percentile {lengths['p90']}, "
            f"longest {lengths['max']}); {part['truncated']} were cut to {report['sequence_length']} tokens. "
            f"{part['packed_rows']} packed rows, useful token share {part['useful_token_share']:.4f}.",
            "",
        ]
        for name in ("by_source", "by_type", "by_system_prompt", "removed"):
            lines += _markdown_table(name, part[name])
    lines += [f"Rows in both splits: {report['overlap']}.", "", "## Files", ""]
    for split in ("files", "validation_files"):
        for corpus, files in report[split].items():
            shown = ", ".join(files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
            lines.append(f"- {corpus}{' (validation)' if split == 'validation_files' else ''}: {shown}")
    return "\n".join(lines) + "\n"


def _markdown_table(name: str, counts: dict[str, int]) -> list[str]:
    if not counts:
        return []
    total = sum(counts.values())
    rows = [f"| {key} | {count} | {100 * count / total:.2f} % |" for key, count in counts.items()]
    return [f"| {name} | number | share |", "| --- | ---: | ---: |", *rows, ""]


def _charts(folder: Path, report: dict[str, Any]) -> None:
    # Imported here: it takes long, and most users of this package never draw.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir()
    for name, title in (
        ("by_source", "records by source"),
        ("by_type", "records by type"),
        ("by_system_prompt", "conversations by system prompt"),
        ("removed", "source rows removed, by rule"),
        ("length_histogram", "rows by tokens"),
    ):
        figure = Figure(figsize=(7, 4), layout="constrained")
        FigureCanvasAgg(figure)
        for place, (label, part) in enumerate((("training", report), ("validation", report["validation"]))):
            axes = figure.add_subplot(1, 2, place + 1)
            axes.set_title(f"{label}: {title}", fontsize=8)
            axes.tick_params(labelsize=7)
            values = part[name]
            if not values:
                axes.set_axis_off()
                axes.text(0.5, 0.5, "none", ha="center")
            elif isinstance(values, dict):
                axes.barh(list(values), list(values.values()))
            else:
                width = report["sequence_length"] / len(values)
                axes.bar((np.arange(len(values)) + 0.5) * width, values, width=width)
                axes.set_xlabel("tokens", fontsize=7)
        figure.savefig(folder / f"{name}.png", dpi=100)
