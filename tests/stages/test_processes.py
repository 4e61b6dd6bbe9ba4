"""Processes that train together: they meet, they give what one process gives, and they say who is missing."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gemma_keras.training.hooks import TIMING_FIELDS

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5  # relative, float32
STEPS = 12
JOIN = """
import sys
from gemma_keras.config.sections import ParallelConfig
from gemma_keras.stages.running import processes
count, number, coordinator, seconds = sys.argv[1:]
try:
    processes.join(ParallelConfig(processes=int(count), process=int(number), coordinator=coordinator), float(seconds))
    mine = [int(number), 7]
    print(json.dumps([processes.any_of_all(number == "1"), processes.union_of_all(mine[: int(number) + 1])]))
except processes.UserError as error:
    sys.exit(str(error))
"""


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def environment(devices: int, **more: str) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax", "XLA_FLAGS": flags, **more}


def start(arguments: list[str], env: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ends(started: list[subprocess.Popen], seconds: float = 600) -> list[tuple[int, str, str]]:
    """Exit status, stdout and stderr of each; none of them outlives this."""
    try:
        texts = [process.communicate(timeout=seconds) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(started, texts, strict=True)]


def joined(*who: tuple[int, int], seconds: float, address: str = "") -> list[tuple[int, str, str]]:
    """Processes, each given by (how many there are, its number), that try to join; see `ends`."""
    address = address or free_address()
    program = f"import json\n{JOIN}"
    return ends(
        [start(["-c", program, str(n), str(i), address, str(seconds)], environment(1)) for n, i in who], seconds=120
    )


def test_processes_meet_and_agree():
    found = joined((2, 0), (2, 1), seconds=60)
    for status, out, err in found:
        assert status == 0, err
        assert json.loads(out.splitlines()[-1]) == [True, [0, 1, 7]]


@pytest.mark.parametrize(
    ("who", "seconds", "reason"),
    [
        pytest.param([(2, 1)], 1, "nobody listens there", id="no process 0"),
        pytest.param([(3, 0)], 1, "no word from process 1, 2 in time", id="process 0 alone"),
        pytest.param([(3, 0), (3, 1), (3, 1)], 60, "two processes have the number 1", id="a number twice"),
        pytest.param([(3, 0), (2, 1)], 60, "process 1 was started as one of 2", id="another count"),
    ],
)
def test_those_that_do_not_meet_are_told_why(who, seconds, reason):
    for status, _, err in joined(*who, seconds=seconds):
        assert status == 1 and reason in err, err
        assert "config.parallel.coordinator=127.0.0.1" in err and "Traceback" not in err


def test_an_address_without_a_port_is_told():
    ((status, _, err),) = joined((2, 1), seconds=1, address="localhost")
    assert status == 1 and "has not the form host:port" in err


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory, tokenizer) -> Path:
    """Two layers with 8 query heads and 4 KV heads, as they are drawn, exported."""
    from gemma_keras.export.huggingface import export_hf
    from gemma_keras.models.families.registry import get_architecture
    from gemma_keras.models.forward import build_backbone, initial_params
    from gemma_keras.text.templates import TEMPLATES

    architecture = get_architecture("gemma2_tiny").replace(
        num_layers=2, num_query_heads=8, num_key_value_heads=4, head_dim=16, query_pre_attn_scalar=16,
        sliding_window=24, vocabulary_size=tokenizer.vocabulary_size,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("wide") / "export"
    params = initial_params(build_backbone(architecture, "float32"), 0)
    export_hf(params, architecture, tokenizer, folder, dtype="float32", template=TEMPLATES["gemmalm_zh"])
    return folder


@pytest.fixture(scope="module")
def launch(wide_base, cache):
    """A function that starts one process of a fine-tuning run in a workdir."""

    def begin(workdir: Path, devices: int, *flags: str) -> subprocess.Popen:
        arguments = [
            "-m", "scripts.train_sft", "--config=configs/stage1.py", f"--workdir={workdir}",
            f"--config.model.weights={wide_base}", "--config.model.dtype=float32", "--config.data.sequence_length=64",
            "--config.data.rows=600", "--config.data.validation_rows=80", "--config.adapter.init_r=4",
            "--config.adapter.target_r=2", "--config.adapter.delta_t=2", "--config.adapter.dropout=0.1",
            f"--config.train.steps={STEPS}", "--config.train.batch_rows=8", "--config.train.save_every=4",
            "--config.train.log_every=1", "--config.train.eval_every=6", "--config.optim.learning_rate=1e-3",
            "--config.optim.warmup=0.1", "--config.data.system_prompts.none=1", "--config.data.system_prompts.fixed=0",
            "--config.data.system_prompts.dynamic=0", "--config.export.dtype=float32", *flags,
        ]  # fmt: skip
        return start(arguments, environment(devices, JAX_COMPILATION_CACHE_DIR=str(cache)))

    return begin


def pair(launch, workdir: Path, *flags: str) -> list[subprocess.Popen]:
    """Two processes of four devices each, in one workdir."""
    common = ("--config.parallel.processes=2", f"--config.parallel.coordinator={free_address()}", *flags)
    return [launch(workdir, 4, f"--config.parallel.process={number}", *common) for number in range(2)]


@pytest.fixture(scope="module")
def alone(launch, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("alone") / "run"
    ((status, _, err),) = ends([launch(workdir, 1)])
    assert status == 0, err
    return workdir


def metrics(workdir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMING_FIELDS} for line in lines]


def exported(workdir: Path) -> dict[str, np.ndarray]:
    return {
        name: value for file in (workdir / "export").glob("*.safetensors") for name, value in load_file(file).items()
    }


def assert_equal_runs(workdir: Path, expected: Path) -> None:
    found, wanted = metrics(workdir), metrics(expected)
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    for line, reference in zip(found, wanted, strict=True):
        assert line.keys() == reference.keys()
        for name, value in reference.items():
            np.testing.assert_allclose(line[name], value, rtol=TOLERANCE, err_msg=f"{name} of step {line['step']}")
    about, reference = (json.loads((w / "adapter" / "adapter.json").read_text()) for w in (workdir, expected))
    assert about["alive"] == reference["alive"]
    assert any(not all(mask) for mask in about["alive"].values())
    for read in (lambda w: load_file(w / "adapter" / "adapter.safetensors"), exported):
        tensors, references = read(workdir), read(expected)
        assert tensors.keys() == references.keys()
        for name, value in references.items():
            np.testing.assert_allclose(tensors[name], value, rtol=0, atol=TOLERANCE * np.abs(value).max(), err_msg=name)


def files(workdir: Path) -> set[str]:
    """What a run leaves, but for the names of TensorBoard's files and the inside of checkpoints."""
    shown = (path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file())
    return {str(path) for path in shown if path.parts[0] not in ("tensorboard", "checkpoints")}


@pytest.mark.long
@pytest.mark.parametrize("mesh", [(2, 4), (1, 8)], ids=lambda mesh: "x".join(map(str, mesh)))
def test_two_processes_give_what_one_gives(launch, alone, tmp_path, mesh):
    flags = [f"--config.parallel.{axis}={size}" for axis, size in zip(("data", "model"), mesh, strict=True)]
    for status, _, err in ends(pair(launch, tmp_path / "run", *flags)):
        assert status == 0, err
    assert_equal_runs(tmp_path / "run", alone)
    assert files(tmp_path / "run") == files(alone)
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


@pytest.mark.long
def test_a_checkpoint_of_one_mesh_resumes_on_another(launch, alone, tmp_path):
    process = launch(tmp_path / "run", 8, "--config.parallel.model=8")
    wait_for_steps(tmp_path / "run", 5, [process])
    process.send_signal(signal.SIGTERM)
    ((status, _, err),) = ends([process])
    assert status == 128 + signal.SIGTERM, err
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    for workdir, devices, flags in (("run", 8, ["--config.parallel.data=8"]), ("other", 1, [])):
        ((status, _, err),) = ends([launch(tmp_path / workdir, devices, *flags)])
        assert status == 0 and "going on after step" in err, err
        assert_equal_runs(tmp_path / workdir, alone)


def wait_for_steps(workdir: Path, steps: int, started: list[subprocess.Popen]) -> None:
    log = workdir / "metrics.jsonl"
    for _ in range(6000):
        if log.exists() and log.read_text().count("\n") >= steps:
            return
        assert all(process.poll() is None for process in started), [p.communicate() for p in started if p.poll()]
        time.sleep(0.05)
    raise AssertionError(f"no step {steps} in {log}")


@pytest.mark.long
def test_a_lost_process_is_told_and_the_run_goes_on_when_started_again(launch, alone, tmp_path):
    flags = ["--config.parallel.data=2", "--config.parallel.model=4"]
    started = pair(launch, tmp_path / "run", *flags)
    wait_for_steps(tmp_path / "run", 5, started)
    started[1].kill()
    (status, _, err), _ = ends(started)
    assert status == 1 and "another process of this run has ended" in err and "Traceback" not in err, err
    for status, _, err in ends(pair(launch, tmp_path / "run", *flags)):
        assert status == 0, err
    assert_equal_runs(tmp_path / "run", alone)


@pytest.mark.long
def test_a_mistake_of_the_first_process_ends_all(launch, alone, tmp_path):
    shutil.copytree(alone, tmp_path / "run")
    first, second = ends(pair(launch, tmp_path / "run", "--config.train.seed=9"))
    assert first[0] == second[0] == 1
    assert "give the same configuration to resume it" in first[2] and "Traceback" not in first[2]
    assert "process 0 could not go on" in second[2] and "Traceback" not in second[2]


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_both_after_the_same_step(launch, tmp_path, number):
    started = pair(launch, tmp_path / "run", "--config.parallel.data=2", "--config.parallel.model=4")
    wait_for_steps(tmp_path / "run", 3, started)
    started[1].send_signal(number)
    found = ends(started, seconds=120)
    assert [status for status, _, _ in found] == [128 + signal.SIGTERM, 128 + number], found
    steps = {err.partition("stopped after step ")[2].split(";")[0] for _, _, err in found}
    assert len(steps) == 1 and steps == {str(metrics(tmp_path / "run")[-1]["step"])}
    assert (tmp_path / "run" / "checkpoints" / steps.pop()).is_dir()
