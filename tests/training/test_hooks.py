"""Hooks see the right steps, and a bad step is told with its rows."""

import numpy as np
import pytest

from gemma_keras.config.sections import TrainConfig
from gemma_keras.training import hooks
from gemma_keras.training.loop import train


def batch(rows=(0, 3, 3, -1)):
    return {"segment_ids": np.array([[1, 2, 2, 0]]), "row_index": np.array([list(rows)])}


def run(losses, hook_list, **options):
    def step(number, state, batch):
        assert number == state + 1
        return state + 1, {"loss": np.float32(losses[state]), "grad_norm": np.float32(1.0)}

    return train(step, 0, [batch()] * len(losses), first_step=1, hooks=hook_list, **options)


def test_guard_names_step_and_rows_and_comes_before_the_checkpoint():
    saved = []
    hook_list = [
        hooks.NonFiniteGuard(),
        hooks.Checkpoint(lambda step, state: saved.append(step), 1, 9),
    ]
    with pytest.raises(hooks.NonFiniteError) as caught:
        run([1.0, 0.9, float("nan"), 0.8], hook_list)
    assert caught.value.step == 3 and caught.value.row_index == [0, 3]
    assert saved == [1, 2]


def test_one_log_line_a_step_with_all_fields():
    lines = []
    hook_list = [
        hooks.Throughput(lambda step: 0.1 * step, 2),
        hooks.Evaluation(lambda state: {"loss": 7.0}, 3, 7),
        hooks.Log(lines.append, lambda step: step in (1, 2, 3, 4, 6, 7)),
    ]
    run([1.0] * 7, hook_list)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 6, 7]
    assert [line["step"] for line in lines if "valid_loss" in line] == [3, 6, 7]
    assert lines[1]["learning_rate"] == pytest.approx(0.1) and lines[0]["useful_token_share"] == 0.75
    assert all(isinstance(line["loss"], float) for line in lines)


def test_what_is_logged_is_the_mean_and_what_is_guarded_the_step():
    lines, losses = [], [1.0, 2.0, float("inf")]

    def step(number, state, batch):
        own = {"loss": np.float32(losses[number - 1]), "grad_norm": np.float32(1.0)}
        return state, {**own, "means": {"loss": np.float32(0.5)}}

    listed = [hooks.NonFiniteGuard(), hooks.Means(), hooks.Log(lines.append, lambda step: True)]
    with pytest.raises(hooks.NonFiniteError) as caught:
        train(step, 0, [batch()] * 3, first_step=1, hooks=listed)
    assert caught.value.step == 3
    assert lines == [{"step": step, "loss": 0.5, "grad_norm": 1.0} for step in (1, 2)]


@pytest.mark.parametrize(
    ("values", "steps", "expected"),
    [
        ({}, 400, (10, 40, 100)),
        ({"log_every": 0.005, "eval_every": 0.25, "save_every": 0.5}, 1000, (5, 250, 500)),
        ({"log_every": 0.005, "save_every": 0.05}, 8, (1, 1, 1)),
        ({"eval_every": 0, "save_every": 7}, 20, (10, 0, 7)),
    ],
)
def test_periods_are_steps_or_shares_of_the_run(values, steps, expected):
    assert hooks.Periods.of(TrainConfig(**values), steps) == expected


def test_ten_validations_a_run_by_default():
    for steps in (*range(10, 400), 4089):
        every = hooks.Periods.of(TrainConfig(), steps).evaluate
        assert sum(hooks.due(step, every, steps) for step in range(1, steps + 1)) >= 10, steps


def test_a_stop_ends_the_run_after_the_step():
    class Ask:
        asked = False

        def after_step(self, step, state, metrics, batch):
            self.asked = step == 3

    ask = Ask()
    assert run([1.0] * 9, [ask], stop=lambda: ask.asked) == 3


def test_progress_shows_step_speed_time_left_and_rank(capsys):
    run([1.5] * 2, [hooks.Throughput(lambda step: 0.0, 1), hooks.ProgressLine(lambda step: True, 1, 2)])
    text = capsys.readouterr().err
    assert "step 2/2" in text and "loss 1.5000" in text and "tokens/s" in text and "ETA 0:00:00" in text
