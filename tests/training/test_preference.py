"""DPO on packed pairs against the formula on single answers, by torch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gemma_keras.adapters.inject import adapted_matrices, add_adapters, disable_adapters, initial_adapter_params
from gemma_keras.config.sections import AdapterConfig
from gemma_keras.models.forward import build_backbone, forward, logits
from gemma_keras.parallel.plan import ONE_DEVICE
from gemma_keras.training.objectives.dpo import Preference, preference_sums
from tests.models.conftest import lively_params, small

BETA = 0.3
LENGTHS = (((7, 5), (6, 9)), ((12, 4),))  # rows of pairs: tokens of the chosen and of the rejected side
PROMPT, TIME = 3, 24


@pytest.fixture(scope="module")
def model():
    """A backbone with adapters that are not zero."""
    backbone = build_backbone(small(), "float32")
    matrices = add_adapters(backbone, AdapterConfig(method="adalora", init_r=4, target_r=2, dropout=0.0))
    rng = np.random.default_rng(0)
    adapters = {
        path: jnp.asarray(rng.normal(0, 0.3, value.shape), jnp.float32)
        for path, value in initial_adapter_params(matrices, 0).items()
    }
    return backbone, {**lively_params(small()), **adapters}


def packed_pairs():
    """A batch [2, B, T] and its answers, (chosen, rejected) token by token."""
    rng = np.random.default_rng(1)
    batch = {
        name: np.zeros((2, len(LENGTHS), TIME), np.int32) for name in ("tokens", "targets", "segment_ids", "positions")
    }
    batch["loss_weights"] = np.zeros((2, len(LENGTHS), TIME), np.float32)
    answers = []
    for b, row in enumerate(LENGTHS):
        start = 0
        for segment, lengths in enumerate(row, start=1):
            prompt, pair = rng.integers(1, 50, PROMPT), []
            for side, length in enumerate(lengths):
                tokens = np.concatenate([prompt, rng.integers(1, 50, length - PROMPT)])
                place = (side, b, slice(start, start + length))
                batch["tokens"][place], batch["segment_ids"][place] = tokens, segment
                batch["positions"][place] = np.arange(length)
                batch["targets"][side, b, start : start + length - 1] = tokens[1:]
                batch["loss_weights"][side, b, start + PROMPT - 1 : start + length - 1] = 1
                pair.append(tokens)
            answers.append(pair)
            start += max(lengths)
    return batch, answers


def answer_log_prob(backbone, params, tokens):
    """Of one answer on its own, by torch."""
    ids = jnp.asarray(tokens, jnp.int32)[None]
    hidden = forward(backbone, params, ids, jnp.arange(ids.shape[1])[None], jnp.ones_like(ids))
    values = torch.from_numpy(np.array(logits(backbone, params, hidden)[0]))
    scores = torch.log_softmax(values[:-1].double(), -1)[range(len(tokens) - 1), tokens[1:].tolist()]
    return scores[PROMPT - 1 :].sum()


@pytest.mark.long
def test_packed_pairs_equal_single_answers(model):
    backbone, params = model
    batch, answers = packed_pairs()
    reference = disable_adapters(adapted_matrices(backbone), params)
    sums = preference_sums(backbone, params, reference, batch, beta=BETA, training=False)
    expected, wins = 0.0, 0
    for pair in answers:
        chosen, rejected = (
            answer_log_prob(backbone, params, tokens) - answer_log_prob(backbone, reference, tokens) for tokens in pair
        )
        expected -= torch.nn.functional.logsigmoid(BETA * (chosen - rejected)).item()
        wins += bool(chosen > rejected)
    assert float(sums.weight) == len(answers) and int(sums.metrics["rewards/accuracies"]) == wins
    assert float(sums.loss) == pytest.approx(expected, rel=1e-5)
    assert abs(expected / len(answers) - math.log(2)) > 1e-2  # so that the reference and beta show


def test_a_fresh_adapter_has_the_loss_ln_2(model):
    backbone, params = model
    fresh = disable_adapters(adapted_matrices(backbone), params)
    sums = preference_sums(backbone, fresh, fresh, packed_pairs()[0], beta=BETA, training=False)
    assert float(sums.loss / sums.weight) == pytest.approx(math.log(2), rel=1e-6)


def test_figures_of_other_rows_are_those_of_the_step_under_names_of_their_own(model):
    backbone, params = model
    batch, _ = packed_pairs()
    objective = Preference(backbone, [], ONE_DEVICE, BETA)
    sums = objective.sums(params, {}, batch, None)
    figures = objective.evaluator()(params, [batch, batch])
    assert figures == pytest.approx(
        {
            "loss": float(sums.loss / sums.weight),
            "rewards/accuracies": float(sums.metrics["rewards/accuracies"] / sums.weight),
        },
        rel=1e-5,
    )


def test_the_reference_gets_no_gradient(model):
    backbone, params = model
    batch = packed_pairs()[0]

    def loss(reference):
        return preference_sums(backbone, params, reference, batch, beta=BETA, training=False).loss

    grads = jax.grad(loss)(disable_adapters(adapted_matrices(backbone), params))
    assert all(not np.asarray(g).any() for g in grads.values())
