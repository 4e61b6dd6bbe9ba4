"""Pretrains a base model: all weights are trained on plain text and some dialogues."""

from pathlib import Path

from gemma_keras import runtime
from gemma_keras.config import flags
from gemma_keras.config.schema import Config


def main(config: Config, workdir: Path) -> None:
    runtime.configure(workdir)
    from gemma_keras.stages import pretrain  # after the settings above, and not at all for --help

    pretrain.run(config, workdir)


if __name__ == "__main__":
    flags.run(main, default_config="configs/pretrain.py", kind=Config)
