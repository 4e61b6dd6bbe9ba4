"""Compiling for TPU in a test: in a process of its own, one at a time, skipped where libtpu is not installed."""

import fcntl
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCK = Path(tempfile.gettempdir()) / "tpu.lock"
# The compiler reads these as JAX starts; without them it asks the network what machine this is.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def environment() -> dict[str, str]:
    """The environment of a process that compiles for TPU; one CPU device."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | ENVIRONMENT


@contextmanager
def compiler(patience: float = 900.0) -> Iterator[None]:
    """Holds the TPU compiler, which serves one process; skips the test without libtpu, or after `patience` seconds."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the TPU compiler (libtpu) is not installed")
    with open(LOCK, "w", encoding="utf-8") as lock:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    pytest.skip(f"the TPU compiler was in use by another process for {patience:.0f} s")
                time.sleep(0.5)
        yield


def run(arguments: list[str], *, timeout: float = 600.0, patience: float = 900.0) -> subprocess.CompletedProcess:
    """Python with these arguments, with the TPU compiler at its disposal; started in the root of the repository."""
    with compiler(patience):
        return subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout
        )
