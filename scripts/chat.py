"""Chats with a model on the terminal; or answers --config.questions (repeated for several), or the lines of a pipe, and ends.

What cannot be answered has the reason in brackets, and then the exit status is 1.
"""

from pathlib import Path

from gemma_keras import runtime
from gemma_keras.config import flags
from gemma_keras.config.schema import Config


def main(config: Config, workdir: Path) -> None:
    runtime.configure(workdir)
    from gemma_keras.stages import chat  # after the settings above, and not at all for --help

    chat.run(config, workdir)


if __name__ == "__main__":
    flags.run(main, default_config="configs/chat.py", kind=Config)
