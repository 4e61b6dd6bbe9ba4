"""Preflight as a user runs it, on shapes that are given by a model folder without weights."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gemma_keras.models.architecture import Architecture
from gemma_keras.models.families.registry import get_architecture, to_hf_config
from tests import tpu

ROOT = Path(__file__).parents[2]


class Preflight:
    """Runs `scripts.preflight` with configs/stage1.py in a process of its own."""

    def __init__(self, folder: Path):
        self.folder = folder

    def run(self, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "scripts.preflight", f"--workdir={self.folder / 'run'}", *arguments]
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)

    def report(
        self, architecture: str, *arguments: str, rows: int, length: int, topology: str = "v5e:2x4",
        timeout: float = 600, **changes: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """What `preflight.json` holds for a named shape with some fields changed."""
        tpu.require_compiler()
        shape = get_architecture(architecture).replace(**changes)
        result = self.run(
            f"--config.model.weights={self._model(shape)}", f"--topology={topology}",
            f"--config.train.batch_rows={rows}", f"--config.data.sequence_length={length}",
            f"--config.inference.max_rows={rows}", f"--config.prompt_tokens={length}", *arguments, timeout=timeout,
        )  # fmt: skip
        path = self.folder / "run" / "preflight.json"
        assert path.exists(), result.stderr
        report = json.loads(path.read_text())
        assert (result.returncode == 0) == report["fits"], result.stderr
        return report

    def _model(self, shape: Architecture) -> Path:
        folder = self.folder / shape.name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(to_hf_config(shape, "bfloat16")))
        return folder


@pytest.fixture
def preflight(tmp_path) -> Preflight:
    return Preflight(tmp_path)
