"""Files of a workdir: whole or not at all, and cut back to the checkpoint."""

import json
import subprocess
import sys

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.stages.running import plots
from gemma_keras.stages.running.workdir import (
    JsonLines,
    RunLog,
    begin,
    check_inputs,
    claim,
    fingerprints,
    read_json,
    write_json,
)


def test_metrics_are_cut_back_to_a_step_and_a_torn_line_is_dropped(tmp_path):
    metrics = JsonLines(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        metrics.append({"step": step, "loss": 1 / step})
    with metrics.path.open("a") as file:
        file.write('{"step": 4, "lo')
    RunLog(tmp_path, completed=2)
    assert metrics.read() == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    metrics.append({"step": 3, "loss": 0.25})
    assert [line["step"] for line in metrics.read()] == [1, 2, 3]


def test_begin_accepts_the_same_run_and_names_what_changed(tmp_path):
    config = {"train": {"steps": 5, "log_every": 1}, "optim": {"learning_rate": 0.1}}
    begin(tmp_path, config)
    begin(tmp_path, {**config, "train": {"steps": 5, "log_every": 2}})
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["config"]["train"]["log_every"] == 2 and "jax" in written["versions"]
    begin(tmp_path, {**config, "optim": {"learning_rate": 0.3}})  # nothing to go on from: a mistake may be mended
    begin(tmp_path, config)
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(UserError, match=r"config\.optim\.learning_rate=0\.1, this one has 0\.2"):
        begin(tmp_path, {**config, "optim": {"learning_rate": 0.2}})


@pytest.mark.parametrize("text", ['{"a"', '{"model_type": "gemma2"}', "[]"])
def test_a_workdir_with_a_damaged_or_foreign_config_is_told(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="give another --workdir"):
        begin(tmp_path, {})
    assert (tmp_path / "config.json").read_text() == text


def test_a_workdir_that_is_a_file_is_told(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        begin(tmp_path / "taken", {})


def test_json_is_replaced_whole(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


def test_json_of_bytes_that_are_no_text(tmp_path):
    write_json(tmp_path / "a.json", ["甲\udcff😀"])
    assert read_json(tmp_path / "a.json") == ["甲\udcff😀"]


def test_a_claim_writes_nothing_of_the_run(tmp_path):
    begin(tmp_path, {"train": {"steps": 5}})
    before = (tmp_path / "config.json").read_bytes()
    claim(tmp_path, {"train": {"steps": 6}})
    assert (tmp_path / "config.json").read_bytes() == before
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.train\.steps=5, this one has 6"):
        claim(tmp_path, {"train": {"steps": 6}})


@pytest.mark.parametrize("size", [0, 1, 5000, 9 << 20])
def test_fingerprints(size, tmp_path):
    """Any place of a small file, and any thousandth of a large one, makes another."""
    path = tmp_path / "model.h5"
    path.write_bytes(bytes(size))
    before = fingerprints([path, tmp_path])
    assert fingerprints([path]) == before and list(before) == ["model.h5"]
    for place in {0, size // 2, size - 1} if size else ():
        content = bytearray(size)
        content[place : place + size // 1000 + 1] = b"\1" * len(content[place : place + size // 1000 + 1])
        path.write_bytes(content)
        assert fingerprints([path]) != before
    path.write_bytes(bytes(size + 1))
    assert fingerprints([path]) != before


def test_tensorboard_reads_the_events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for completed, steps in ((0, (1, 2, 3)), (1, (2,))):  # the second run starts again after step 1
        log = RunLog(tmp_path, completed)
        for step in steps:
            log.append({"step": step, "loss": float(step), "ranks": [1, 2]})
        log.close(["one", "other"])
    accumulator = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert accumulator.Tags()["scalars"] == ["loss"]
    assert [event.step for event in accumulator.Scalars("loss")] == [1, 2]


def test_plots_are_pictures(tmp_path):
    lines = [{"step": s, "loss": 2 / s, "ranks": [4, 4 - s // 2]} for s in range(1, 6)]
    lines[-1]["valid_loss"] = 0.5
    plots.draw(lines, tmp_path / "plots", ["decoder_block_0/attention/query", "decoder_block_0/attention/key"])
    for name in ("loss.png", "ranks.png", "run.png"):
        assert (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")


def test_two_runs_in_one_workdir_are_refused(tmp_path):
    code = (
        "import pathlib, time; from gemma_keras.stages.running import workdir\n"
        f"workdir.begin(pathlib.Path({str(tmp_path)!r}), {{}}); print('begun', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "begun\n"
        with pytest.raises(UserError, match="in use by another run"):
            begin(tmp_path, {})
    finally:
        other.kill()
        other.wait()
    begin(tmp_path, {})  # the lock is gone with the process, however it ended


def test_inputs_that_changed_under_a_run_are_named(tmp_path):
    check_inputs(tmp_path, {"data": "a", "weights": {"x": 1}}, resuming=False)
    check_inputs(tmp_path, {"data": "a", "weights": {"x": 1}}, resuming=True)
    with pytest.raises(UserError, match="other data"):
        check_inputs(tmp_path, {"data": "b", "weights": {"x": 1}}, resuming=True)
    check_inputs(tmp_path, {"data": "b", "weights": {"x": 1}}, resuming=False)
