"""Compiling for TPU in a test: in a process of its own, skipped where libtpu is not installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gemma_keras.preflight.topologies import ENVIRONMENT

ROOT = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    """The environment of a process that compiles for TPU; one CPU device."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | ENVIRONMENT


def require_compiler() -> None:
    """Skips the test without libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the TPU compiler (libtpu) is not installed")


def run(arguments: list[str], *, timeout: float = 600.0) -> subprocess.CompletedProcess:
    """Python with these arguments, with the TPU compiler at its disposal; started in the root of the repository."""
    require_compiler()
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout
    )
