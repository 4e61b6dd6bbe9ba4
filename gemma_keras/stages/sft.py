"""Supervised fine-tuning: an adapter on a frozen base, merged into it for export."""

from pathlib import Path

from gemma_keras.config.errors import require
from gemma_keras.config.stages import SftConfig
from gemma_keras.stages import training


def run(config: SftConfig, workdir: Path) -> dict:
    """Tunes `model.weights`, leaves `<workdir>/adapter` and the merged model in `<workdir>/export`; see `training.run`."""
    require(
        bool(config.model.weights),
        "config.model.weights is empty, but fine-tuning needs a base model; give a Hugging Face folder, a Keras preset "
        "folder, a GGUF file, or the export folder of an earlier stage.",
    )
    return training.run(config, workdir)
