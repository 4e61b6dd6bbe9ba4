"""Contestants in processes of their own that take turns: what asks, and what answers.

A line on standard input asks for a turn, a line of JSON on standard output answers. When the input ends, so does the process.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemma_keras import runtime

ON_CPU = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class Process:
    """`python -m module name folder`, once it is ready."""

    def __init__(self, module: str, name: str, folder: Path, environment: dict[str, str]):
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, name, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | environment,
        )  # fmt: skip
        self._answer()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one turn."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, as `_answer` says
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self._process.wait()}")
        return json.loads(line)


def serve(build: Callable[[str, Path], Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """The other side: builds the contestant of the command line, then answers until the input ends."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    # Libraries print to standard output, which belongs to the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    runtime.configure()
    take_turn = build(name, folder)
    answers.write(json.dumps({"ready": name}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(take_turn(json.loads(line))) + "\n")
