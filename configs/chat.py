"""A conversation on the terminal, or answers to `--config.questions` (repeated for several) or to the lines of a pipe.

Launch: python -m scripts.chat --config=configs/chat.py --workdir=DIR --config.model.weights=MODEL
Hardware: any.
"""

from gemma_keras.config.stages import ChatConfig


def get_config() -> ChatConfig:
    return ChatConfig()
