"""llama.cpp's converter, as a program of its own."""

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def convert() -> Callable[..., None]:
    """`convert(folder, file, kind)`: runs llama.cpp's convert_hf_to_gguf.py of the release that is installed."""
    version = importlib.metadata.version("llama-cpp-python")
    folder = os.environ.get("GEMMA_KERAS_LLAMA_CPP") or Path(sys.prefix, "share", f"llama.cpp-{version}")
    script = Path(folder, "convert_hf_to_gguf.py")
    if not script.exists():
        pytest.skip(
            f"there is no {script}: bash scripts/peers.sh fetches it, or GEMMA_KERAS_LLAMA_CPP names its folder"
        )

    def run(model: Path, out: Path, kind: str = "f32") -> None:
        command = [sys.executable, str(script), str(model), f"--outtype={kind}", f"--outfile={out}"]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
        assert done.returncode == 0, done.stderr

    return run
