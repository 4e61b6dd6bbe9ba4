"""Runs the whole flow: data, pretraining, fine-tuning, evaluation, samples, export, verification."""

from pathlib import Path

from gemma_keras import runtime
from gemma_keras.config import flags
from gemma_keras.config.schema import PipelineConfig


def main(config: PipelineConfig, workdir: Path) -> None:
    runtime.configure(workdir)
    from gemma_keras.stages import pipeline  # after the settings above, and not at all for --help

    pipeline.run(config, workdir)


if __name__ == "__main__":
    flags.run(main, default_config="configs/quickstart.py", kind=PipelineConfig)
