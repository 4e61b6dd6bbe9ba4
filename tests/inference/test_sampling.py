"""Processed distributions against transformers' processors, and frequencies of draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers.generation import logits_process as theirs

from gemma_keras.config.errors import UserError
from gemma_keras.config.schema import SamplingConfig
from gemma_keras.inference.sampling import Sampling, next_tokens, process, row_keys, truncate

GRID = [
    dict(temperature=1.0),
    dict(temperature=0.3),
    dict(temperature=1.7, top_k=1),
    dict(temperature=1.0, top_k=7),
    dict(temperature=1.0, top_k=5000),
    dict(temperature=0.7, top_p=0.95),
    dict(temperature=1.0, top_p=1e-6),
    dict(temperature=1.0, top_p=0.5, repetition_penalty=1.3),
    dict(temperature=1.0, repetition_penalty=0.8),
    dict(temperature=0.7, top_k=40, top_p=0.8, repetition_penalty=1.1),
]


def sampling(**values) -> SamplingConfig:
    """A `SamplingConfig` that draws from the whole distribution but for `values`."""
    return SamplingConfig(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, **values})


def transformers_scores(logits, tokens, config) -> np.ndarray:
    processors = [theirs.RepetitionPenaltyLogitsProcessor(config.repetition_penalty)]
    processors.append(theirs.TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        processors.append(theirs.TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        processors.append(theirs.TopPLogitsWarper(config.top_p))
    scores = torch.tensor(logits)
    for processor in processors:
        scores = processor(torch.tensor(tokens), scores)
    return scores.numpy()


@pytest.mark.parametrize("values", GRID, ids=str)
@pytest.mark.parametrize("vocabulary", [97, 4096])
def test_distribution_equals_transformers(values, vocabulary):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (5, vocabulary)).astype(np.float32)
    tokens = rng.integers(0, vocabulary, (5, 12))
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, tokens, True, axis=-1)
    config = sampling(**values)
    ours = jax.jit(process)(logits, seen, Sampling.of(config))
    expected = transformers_scores(logits, tokens, config)
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(expected))
    np.testing.assert_allclose(jax.nn.softmax(ours), jax.nn.softmax(expected), rtol=0, atol=1e-5)


def test_tokens_as_likely_as_the_last_one_kept_are_kept():
    logits = jnp.array([[2.0, 1.0, 1.0, 0.0]])
    for kept in (truncate(logits, 2, 1.0), truncate(logits, 0, 0.7)):
        assert np.isfinite(kept)[0].tolist() == [True, True, True, False]


@pytest.mark.parametrize("values", [dict(), dict(temperature=0.6, top_k=5), dict(top_p=0.7)], ids=str)
def test_frequencies_of_draws_are_the_probabilities(values):
    draws = 20_000
    row = np.random.default_rng(1).normal(0, 1, 12).astype(np.float32)
    logits, seen = np.tile(row, (draws, 1)), np.zeros((draws, 12), bool)
    values = Sampling.of(sampling(**values))
    # Half of the draws come from different rows, half from different steps.
    keys = row_keys(np.uint32(3), jnp.arange(draws // 2))
    tokens = [next_tokens(logits[: draws // 2], seen[: draws // 2], values, keys, np.int32(step)) for step in (0, 1)]
    counts = np.bincount(np.concatenate(tokens), minlength=12)
    expected = np.asarray(jax.nn.softmax(process(logits[:1], seen[:1], values)))[0].astype(np.float64)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    expected = expected[possible] / expected[possible].sum() * draws
    assert chisquare(counts[possible], expected).pvalue > 0.01


def test_temperature_zero_takes_the_most_likely_after_the_penalty():
    logits, seen = jnp.array([[3.0, 2.5, -1.0]]), jnp.array([[True, False, False]])
    for penalty, expected in ((1.0, 0), (1.5, 1)):
        values = Sampling.of(sampling(temperature=0.0, repetition_penalty=penalty))
        assert next_tokens(logits, seen, values, row_keys(np.uint32(0), jnp.arange(1)), 0).tolist() == [expected]


@pytest.mark.parametrize(
    "values",
    [
        dict(temperature=-0.1),
        dict(temperature=float("nan")),
        dict(temperature=1e-30),
        dict(top_p=0.0),
        dict(top_p=1.01),
        dict(top_k=-1),
        dict(max_new_tokens=0),
        dict(repetition_penalty=0.0),
    ],
    ids=str,
)
def test_impossible_values_are_named(values):
    (name,) = values
    with pytest.raises(UserError, match=f"sampling.{name} is "):
        Sampling.of(sampling(**values))
