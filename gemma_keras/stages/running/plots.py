"""Plots of a run, drawn from `metrics.jsonl` alone."""

from pathlib import Path
from typing import Any

import numpy as np


def draw(lines: list[dict], folder: Path, matrix_names: list[str]) -> None:
    """Writes `loss.png` and, for AdaLoRA, `ranks.png`, rank by matrix and step as a heat map, and `run.png`, both in one."""
    # Imported here: it takes long.
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    _draw_loss(lines, figure.subplots())
    figure.savefig(folder / "loss.png", dpi=120)
    ranked = [line for line in lines if "ranks" in line]
    if ranked:
        height = min(max(3.0, 0.22 * len(ranked[0]["ranks"]) + 1.5), 30)
        figure = Figure(figsize=(9, height), layout="constrained")
        figure.colorbar(_draw_ranks(ranked, figure.subplots(), matrix_names), label="rank")
        figure.savefig(folder / "ranks.png", dpi=120)
        figure = Figure(figsize=(13, 5), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_loss(lines, left)
        figure.colorbar(_draw_ranks(ranked, right, matrix_names, labels=20), label="rank")
        figure.savefig(folder / "run.png", dpi=110)


def _draw_loss(lines: list[dict], axes: Any) -> None:
    axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], label="training", linewidth=1)
    valid = [line for line in lines if "valid_loss" in line]
    if valid:
        axes.plot([v["step"] for v in valid], [v["valid_loss"] for v in valid], "o-", label="validation")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)", title="Loss")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_ranks(lines: list[dict], axes: Any, matrix_names: list[str], labels: int | None = None) -> Any:
    """Returns the mesh, to which a colour bar belongs. `labels`: about how many matrices are named; None: all."""
    ranks = np.array([line["ranks"] for line in lines]).T
    edges = [0, *(line["step"] for line in lines)]  # what is logged at a step stands for the steps before it
    mesh = axes.pcolormesh(edges, np.arange(len(ranks) + 1), ranks, vmin=0, vmax=ranks.max(), cmap="viridis")
    names = [name.replace("decoder_block_", "").replace("attention/", "") for name in matrix_names]
    every = 1 if labels is None else max(1, round(len(names) / labels))
    axes.set_yticks((np.arange(len(ranks)) + 0.5)[::every], names[::every], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="optimizer step", ylabel="layer / projection", title="Surviving ranks by matrix")
    return mesh
