"""Pretraining: every weight is trained, on all tokens of text and of a few rendered conversations."""

from pathlib import Path

from gemma_keras.config.errors import require
from gemma_keras.config.stages import PretrainConfig
from gemma_keras.stages import training


def run(config: PretrainConfig, workdir: Path) -> dict:
    """Trains a base model and exports it to `<workdir>/export`; see `training.run`."""
    require(
        config.adapter.method == "none",
        f"config.adapter.method={config.adapter.method!r} was given, but pretraining trains all weights: expected 'none'; "
        "use train_sft for adapters.",
    )
    return training.run(config, workdir)
