"""Plots of a run, drawn from `metrics.jsonl` alone."""

from pathlib import Path

import numpy as np


def draw(lines: list[dict], folder: Path, matrix_names: list[str]) -> None:
    """Writes `loss.png` and, for AdaLoRA, `ranks.png`: rank by matrix and step as a heat map."""
    folder.mkdir(parents=True, exist_ok=True)
    _draw_loss(lines, folder / "loss.png")
    if any("ranks" in line for line in lines):
        _draw_ranks([line for line in lines if "ranks" in line], folder / "ranks.png", matrix_names)


def _draw_loss(lines: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], label="training", linewidth=1)
    valid = [line for line in lines if "valid_loss" in line]
    if valid:
        axes.plot([v["step"] for v in valid], [v["valid_loss"] for v in valid], "o-", label="validation")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)", title="Loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _draw_ranks(lines: list[dict], path: Path, matrix_names: list[str]) -> None:
    from matplotlib.figure import Figure

    ranks = np.array([line["ranks"] for line in lines]).T
    height = min(max(3.0, 0.22 * len(ranks) + 1.5), 30)
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots()
    edges = [0, *(line["step"] for line in lines)]  # what is logged at a step stands for the steps before it
    mesh = axes.pcolormesh(edges, np.arange(len(ranks) + 1), ranks, vmin=0, vmax=ranks.max(), cmap="viridis")
    names = [name.replace("decoder_block_", "").replace("attention/", "") for name in matrix_names]
    axes.set_yticks(np.arange(len(ranks)) + 0.5, names, fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="optimizer step", ylabel="layer / projection", title="Surviving ranks by matrix")
    figure.colorbar(mesh, label="rank")
    figure.savefig(path, dpi=120)
