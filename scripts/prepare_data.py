"""Prepares data: corpora -> checked, tokenised, packed rows with a report, in WORKDIR/data."""

from pathlib import Path

from gemma_keras import runtime
from gemma_keras.config import flags
from gemma_keras.config.schema import Config


def main(config: Config, workdir: Path) -> None:
    runtime.configure(workdir)
    from gemma_keras.stages import prepare  # after the settings above, and not at all for --help

    prepare.run(config, workdir)


if __name__ == "__main__":
    flags.run(main, default_config="configs/tiny.py", kind=Config)
