"""Answers on the terminal: the configured questions, or a conversation."""

import io
import sys
from pathlib import Path

from gemma_keras.config.schema import Config
from gemma_keras.config.serialization import to_dict
from gemma_keras.inference.chat import conversation
from gemma_keras.stages import workdir as files
from gemma_keras.stages.assets import load_chat_model


def run(config: Config, workdir: Path) -> None:
    """Answers `questions` one by one and ends; without questions, talks until the end of input."""
    files.begin(workdir, to_dict(config))
    model = load_chat_model(config, workdir)
    if config.questions:
        conversations = [[{"role": "user", "content": question}] for question in config.questions]
        for question, answer in zip(config.questions, model.reply_batch(conversations, config.sampling), strict=True):
            print(f"> {question}\n{answer}\n")
        return
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text, such as a paste from elsewhere
    print("Type a message; the end of input (Ctrl-D) or Ctrl-C ends the conversation.")
    for _ in conversation(model, config.sampling, show=lambda text: print(text, end="", flush=True)):
        print(flush=True)
