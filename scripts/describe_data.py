"""Reads every known corpus below data.root and accounts for its rows, in WORKDIR/data.md."""

from pathlib import Path

from gemma_keras import runtime
from gemma_keras.config import flags
from gemma_keras.config.schema import Config


def main(config: Config, workdir: Path) -> None:
    runtime.configure(workdir)
    from gemma_keras.stages import describe_data  # after the settings above, and not at all for --help

    describe_data.run(config, workdir)


if __name__ == "__main__":
    flags.run(main, default_config="configs/describe_data.py", kind=Config)
