"""Fine-tunes a base model on conversations with an adapter (AdaLoRA by default)."""

from pathlib import Path

from gemma_keras import runtime
from gemma_keras.config import flags
from gemma_keras.config.schema import Config


def main(config: Config, workdir: Path) -> None:
    runtime.configure(workdir)
    from gemma_keras.stages import sft  # after the settings above, and not at all for --help

    sft.run(config, workdir)


if __name__ == "__main__":
    flags.run(main, default_config="configs/tiny.py", kind=Config)
