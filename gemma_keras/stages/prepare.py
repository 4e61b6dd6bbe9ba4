"""Data preparation as a stage of its own, so that it can run before, or far from, the accelerator."""

from pathlib import Path

from gemma_keras.config.schema import Config
from gemma_keras.config.serialization import to_dict
from gemma_keras.data.prepare import prepare
from gemma_keras.stages import workdir as files
from gemma_keras.stages.assets import resolve_data, resolve_tokenizer


def run(config: Config, workdir: Path) -> dict:
    """Leaves `<workdir>/data` as a training stage with this configuration and workdir would; returns its report."""
    files.begin(workdir, to_dict(config))
    return prepare(resolve_data(config.data), resolve_tokenizer(config, workdir), workdir / "data")
