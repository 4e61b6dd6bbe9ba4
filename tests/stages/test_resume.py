"""Stopping a run by signal at any step and starting it again gives what an uninterrupted run gives."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gemma_keras.training.hooks import TIMING_FIELDS

ROOT = Path(__file__).parents[2]
STEPS = 24
LOGGED = [1, 4, 8, 10, 12, 16, 20, 24]  # by the flags below; a checkpoint is never of one of these steps but the last


def command(base: Path, workdir: Path) -> list[str]:
    return [
        sys.executable, "-m", "scripts.train_sft", "--config=configs/stage1.py", f"--workdir={workdir}",
        f"--config.model.weights={base}", "--config.model.dtype=float32", "--config.data.sequence_length=64",
        "--config.data.rows=600", "--config.data.validation_rows=80", "--config.adapter.init_r=4",
        "--config.adapter.target_r=2", "--config.adapter.delta_t=2", "--config.adapter.dropout=0.1",
        f"--config.train.steps={STEPS}", "--config.train.batch_rows=4", "--config.train.accumulation=2",
        "--config.train.save_every=7", "--config.train.log_every=4", "--config.train.eval_every=10",
        "--config.optim.learning_rate=1e-3", "--config.optim.warmup=0.1", "--config.data.system_prompts.none=1",
        "--config.data.system_prompts.fixed=0", "--config.data.system_prompts.dynamic=0",
    ]  # fmt: skip


def environment(cache: Path) -> dict[str, str]:
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PLATFORMS": "cpu",
    }


def run_until(lines: int, arguments: list[str], workdir: Path, number: int, env: dict[str, str]) -> int:
    """Starts a run, sends the signal once that many lines are logged, returns the exit status."""
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    metrics = workdir / "metrics.jsonl"
    try:
        for _ in range(2400):
            logged = metrics.read_text().count("\n") if metrics.exists() else 0
            if logged >= lines or process.poll() is not None:
                break
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()[0]
        process.send_signal(number)
        process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode


def outcome(workdir: Path) -> tuple[list[dict], dict[str, np.ndarray]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in line.items() if name not in TIMING_FIELDS} for line in lines]
    return kept, load_file(workdir / "adapter" / "adapter.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, base, cache):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command(base, workdir), cwd=ROOT, env=environment(cache), check=True, capture_output=True)
    return outcome(workdir)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.long, id="SIGINT"),
        pytest.param(signal.SIGTERM, marks=pytest.mark.long, id="SIGTERM"),
        pytest.param(signal.SIGKILL, id="SIGKILL"),
    ],
)
def test_a_run_stopped_by_a_signal_ends_as_if_it_had_not_been(number, tmp_path, base, uninterrupted, cache):
    workdir, env = tmp_path / "run", environment(cache)
    lines = random.Random(number).randint(LOGGED.index(8) + 1, LOGGED.index(16) + 1)
    status = run_until(lines, command(base, workdir), workdir, number, env)
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    again = subprocess.run(command(base, workdir), cwd=ROOT, env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    logged, adapter = outcome(workdir)
    expected_lines, expected_adapter = uninterrupted
    assert [line["step"] for line in logged] == LOGGED
    assert logged == expected_lines
    assert adapter.keys() == expected_adapter.keys()
    for path, value in adapter.items():
        np.testing.assert_array_equal(value, expected_adapter[path], err_msg=path)


@pytest.mark.long
def test_another_configuration_does_not_resume_the_run(tmp_path, base, cache):
    arguments = command(base, tmp_path / "run")
    assert run_until(3, arguments, tmp_path / "run", signal.SIGKILL, environment(cache)) == -signal.SIGKILL
    other = subprocess.run(
        [*arguments, "--config.optim.learning_rate=1"], cwd=ROOT, env=environment(cache), capture_output=True, text=True
    )
    assert other.returncode == 1
    assert "give the same configuration to resume it" in other.stderr and "Traceback" not in other.stderr
