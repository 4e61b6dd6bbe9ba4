"""Which runs of `benchmarks.adapter_quality` a best rate is chosen by, and which it is measured by."""

import json

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from benchmarks import adapter_quality


@pytest.fixture
def short_grid_longer_seeds():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["adapter_quality"])
    with flagsaver.flagsaver(tokens=100, seed_tokens=1000, seeds=2):
        yield


def keep(folder, name, *, rate, seed, tokens, loss, nll=None):
    run = folder / "runs" / name
    run.mkdir(parents=True)
    development = {"loss_response": loss, "perplexity_response": loss}
    figures = {"rate": rate, "seed": seed, "tokens": tokens, "weights": 5, "reach": 1.0, "development": development}
    (run / "figures.json").write_text(json.dumps({"group": "lora:2:all:rank", **figures}))
    if nll is not None:
        np.save(run / "nll.npy", np.array([[nll] * 3, [1.0] * 3]))


def test_the_grid_chooses_and_only_runs_of_the_asked_length_and_seeds_are_measured(tmp_path, short_grid_longer_seeds):
    for rate, loss in ((1e-3, 3.0), (3e-3, 2.0), (9e-3, 2.5)):
        keep(
            tmp_path, f"grid-{rate}", rate=rate, seed=0, tokens=100, loss=loss, nll=9.0
        )  # scored by an earlier command
    keep(tmp_path, "diverged", rate=0.3, seed=0, tokens=100, loss=adapter_quality.DIVERGED["loss_response"])
    for seed in range(3):
        keep(tmp_path, f"seed-{seed}", rate=3e-3, seed=seed, tokens=1000, loss=1.0, nll=float(seed))
    group = adapter_quality.Group("lora", 2)
    best = adapter_quality.best(tmp_path, group)
    assert (best["rate"], best["loss"]) == (3e-3, 2.0)
    assert best["nll"][:, 0, 0].tolist() == [0.0, 1.0]
    assert "0.001: 3.00, 0.003: 2.00, 0.009: 2.50, 0.3: inf" in adapter_quality.report(tmp_path, [group])
