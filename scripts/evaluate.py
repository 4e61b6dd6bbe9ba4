"""Evaluates a model: perplexity and token accuracy on held-out rows."""

from pathlib import Path

from gemma_keras import runtime
from gemma_keras.config import flags
from gemma_keras.config.schema import Config


def main(config: Config, workdir: Path) -> None:
    runtime.configure(workdir)
    from gemma_keras.stages import evaluate  # after the settings above, and not at all for --help

    evaluate.run(config, workdir)


if __name__ == "__main__":
    flags.run(main, default_config="configs/evaluate.py", kind=Config)
