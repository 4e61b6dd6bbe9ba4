"""Writes QQP and CoLA as json files {instruction, input, output}, one for training and one for dev, in WORKDIR."""

from pathlib import Path

from gemma_keras import runtime
from gemma_keras.config import flags
from gemma_keras.config.schema import Config


def main(config: Config, workdir: Path) -> None:
    runtime.configure(workdir)
    from gemma_keras.stages import glue  # after the settings above, and not at all for --help

    glue.run(config, workdir)


if __name__ == "__main__":
    flags.run(main, default_config="configs/recipe_e.py", kind=Config)
