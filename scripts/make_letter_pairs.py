"""Builds preference pairs from a model's own answers to multiple-choice questions, in WORKDIR."""

from pathlib import Path

from gemma_keras import runtime
from gemma_keras.config import flags
from gemma_keras.config.schema import Config


def main(config: Config, workdir: Path) -> None:
    runtime.configure(workdir)
    from gemma_keras.stages import letter_pairs  # after the settings above, and not at all for --help

    letter_pairs.run(config, workdir)


if __name__ == "__main__":
    flags.run(main, default_config="configs/letter_pairs.py", kind=Config)
