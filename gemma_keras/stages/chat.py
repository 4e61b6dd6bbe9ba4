"""Answers on the terminal: the configured questions, or a conversation."""

import io
import sys
from pathlib import Path

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import SamplingConfig
from gemma_keras.config.serialization import to_dict
from gemma_keras.config.stages import ChatConfig
from gemma_keras.inference.chat import ChatModel, conversation
from gemma_keras.stages.running import workdir as files
from gemma_keras.stages.running.assets import load_chat_model

# Questions that an error names at most, and characters of each.
_NAMED, _SHOWN = 3, 60


def run(config: ChatConfig, workdir: Path) -> None:
    """Answers `questions` and ends; without questions, talks until the end of input, line by line.

    A question or line that cannot be answered has the reason in brackets in the place of an answer, and the others are
    answered all the same.

    Raises:
        UserError: some of the questions, or of the lines of a file or pipe, were not answered; after the others are.
    """
    files.begin(workdir, to_dict(config))
    model = load_chat_model(config, workdir)
    if config.questions:
        _answer_questions(model, config.questions, config.sampling)
    else:
        _talk(model, config.sampling)


def _answer_questions(model: ChatModel, questions: tuple[str, ...], sampling: SamplingConfig) -> None:
    refused = []
    answers = model.answer_each([[{"role": "user", "content": question}] for question in questions], sampling)
    for question, answer in zip(questions, answers, strict=True):
        if isinstance(answer, UserError):
            refused.append((question, answer))
        print(f"> {question}\n{f'[{answer}]' if isinstance(answer, UserError) else answer.text}\n", flush=True)
    _tell(refused, f"{len(questions)} questions")


def _talk(model: ChatModel, sampling: SamplingConfig) -> None:
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text, such as a paste from elsewhere
    typed = sys.stdin.isatty()
    if typed:
        print("Type a message; the end of input (Ctrl-D) or Ctrl-C ends the conversation.")
    refused: list[tuple[str, UserError]] = []
    lines = 0
    for _ in conversation(
        model, sampling, read=(lambda: input("> ")) if typed else _piped_line, show=lambda text: print(text, end="", flush=True),
        refused=lambda line, error: refused.append((line, error)),
    ):  # fmt: skip
        lines += 1
        print(flush=True)
    if not typed:
        _tell(refused, f"{lines} lines")


def _piped_line() -> str:
    """The next line, shown as it would stand on a terminal that somebody typed it on."""
    line = input()
    if line.strip():
        print(f"> {line}")
    return line


def _tell(refused: list[tuple[str, UserError]], of_all: str) -> None:
    """Raises `UserError` that names what was not answered, if anything was not."""
    if refused:
        reasons = "; ".join(f"{_short(text)!r}: {str(error).rstrip('.')}" for text, error in refused[:_NAMED])
        more = f"; and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
        raise UserError(f"{len(refused)} of {of_all} not answered: {reasons}{more}.")


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
