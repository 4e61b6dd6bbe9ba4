"""Processed distributions against transformers' processors, frequencies of draws, and what a draw depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers.generation import logits_process as theirs

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import SamplingConfig
from gemma_keras.inference import sampling as module
from gemma_keras.inference.sampling import (
    SamplingRows,
    Tallies,
    add_bias,
    masked,
    next_tokens,
    process,
    unpack_bits,
)

distribution, draw = jax.jit(process), jax.jit(next_tokens)

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
    dict(temperature=1.3, min_p=0.05),
    dict(temperature=1.0, presence_penalty=0.7, frequency_penalty=-0.4, repetition_penalty=1.2),
    dict(temperature=0.7, top_k=40, top_p=0.8, min_p=0.02, repetition_penalty=1.1, frequency_penalty=0.3),
]


def sampling(**values) -> SamplingConfig:
    """A `SamplingConfig` that draws from the whole distribution but for `values`."""
    return SamplingConfig(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, **values})


def tallies_of(prompt: np.ndarray, answer: np.ndarray, vocabulary: int) -> Tallies:
    """Tallies after `prompt` [B, T] and `answer` [B, M]."""
    tallies = Tallies.of_prompts(jnp.asarray(prompt), jnp.ones(prompt.shape, bool), vocabulary)
    for tokens in answer.T:
        tallies = tallies.counted(jnp.asarray(tokens), jnp.ones(len(tokens), bool))
    return tallies


def no_tallies(batch: int, vocabulary: int) -> Tallies:
    return Tallies(jnp.zeros((batch, vocabulary), bool), jnp.zeros((batch, vocabulary), jnp.int32))


def expected_scores(logits: np.ndarray, prompt: np.ndarray, answer: np.ndarray, config: SamplingConfig) -> np.ndarray:
    """One row by transformers' processors; presence and frequency, which they lack, by their formula."""
    tokens = torch.tensor(np.concatenate([prompt, answer]))[None]
    scores = theirs.RepetitionPenaltyLogitsProcessor(config.repetition_penalty)(tokens, torch.tensor(logits)[None])
    for token in set(answer.tolist()):
        scores[0, token] -= config.presence_penalty + config.frequency_penalty * answer.tolist().count(token)
    processors: list = [theirs.TemperatureLogitsWarper(config.temperature)]
    if config.top_k:
        processors.append(theirs.TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        processors.append(theirs.TopPLogitsWarper(config.top_p))
    if config.min_p:
        processors.append(theirs.MinPLogitsWarper(config.min_p))
    for processor in processors:
        scores = processor(tokens, scores)
    return scores[0].numpy()


def assert_equals_transformers(grid: list[dict], vocabulary: int, deviation: float) -> None:
    """All of `grid` in one batch, a row each."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, deviation, (len(grid), vocabulary)).astype(np.float32)
    prompt = rng.integers(0, vocabulary, (len(grid), 12))
    answer = np.concatenate([rng.integers(0, vocabulary, (len(grid), 5)), prompt[:, :2], prompt[:, :2]], axis=1)
    # The most likely token is one of the answer's, so that penalties show.
    np.put_along_axis(logits, answer[:, :1], logits.max(axis=-1, keepdims=True) + 1, axis=-1)
    configs = [sampling(**values) for values in grid]
    ours = distribution(logits, tallies_of(prompt, answer, vocabulary), SamplingRows.of(configs))
    expected = np.stack([expected_scores(*row) for row in zip(logits, prompt, answer, configs)])
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(expected))
    np.testing.assert_allclose(jax.nn.softmax(ours), jax.nn.softmax(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("vocabulary", [97, 4096, 32_000])
@pytest.mark.parametrize("deviation", [0.5, 4, 30])
def test_distribution_equals_transformers(vocabulary, deviation):
    assert_equals_transformers(GRID, vocabulary, deviation)


def test_distribution_equals_transformers_at_gemmas_vocabulary():
    assert_equals_transformers([GRID[3], GRID[5], GRID[11]], 256_000, 3)


def test_settings_of_one_row_do_not_touch_another():
    logits = np.random.default_rng(0).normal(0, 30, (len(GRID), 500)).astype(np.float32)
    rows, tallies = SamplingRows.of([sampling(**values) for values in GRID]), no_tallies(len(GRID), 500)
    together = distribution(logits, tallies, rows)
    for row in range(len(GRID)):
        only = slice(row, row + 1)
        alone = distribution(logits[only], no_tallies(1, 500), SamplingRows(*(field[only] for field in rows)))
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-6)


@pytest.mark.parametrize("values", [dict(top_k=2), dict(top_p=0.7)], ids=str)
def test_tokens_as_likely_as_the_last_one_kept_are_kept(values):
    logits = jnp.array([[2.0, 1.0, 1.0, 0.0]])
    kept = distribution(logits, no_tallies(1, 4), SamplingRows.of([sampling(**values)]))
    assert np.isfinite(kept)[0].tolist() == [True, True, True, False]


@pytest.mark.parametrize("values", [dict(top_k=3), dict(top_p=0.9), dict(min_p=0.5), dict(top_k=3, top_p=0.9)], ids=str)
def test_masked_tokens_stay_masked_and_do_not_count(values):
    logits = jnp.full((1, 300), -jnp.inf).at[0, jnp.array([7, 130])].set(jnp.array([1.0, 2.0]))
    kept = distribution(logits, no_tallies(1, 300), SamplingRows.of([sampling(**values)]))
    expected = [130] if "min_p" in values else [7, 130]
    assert np.flatnonzero(np.isfinite(kept[0])).tolist() == expected


@pytest.mark.parametrize(
    "values", [dict(), dict(temperature=0.6, top_k=5), dict(top_p=0.7), dict(min_p=0.2, temperature=1.5)], ids=str
)
@pytest.mark.parametrize("vocabulary", [12, 700])
def test_frequencies_of_draws_are_the_probabilities(values, vocabulary):
    draws = 20_000
    row = np.random.default_rng(1).normal(0, 1.5, vocabulary).astype(np.float32)
    row[vocabulary // 2] = -np.inf
    half = np.tile(row, (draws // 2, 1))
    tallies = no_tallies(draws // 2, vocabulary)
    rows = SamplingRows.of([sampling(**values)] * (draws // 2))
    # Half of the draws come from different seeds, half from different steps.
    each, same = np.arange(draws // 2), np.full(draws // 2, 7)
    of_seeds = draw(half, tallies, rows._replace(seed=each.astype(np.uint32)), same)
    of_steps = draw(half, tallies, rows._replace(seed=same.astype(np.uint32)), each)
    expected = np.asarray(jax.nn.softmax(distribution(half, tallies, rows), axis=-1))[0]
    for tokens in (of_seeds, of_steps):
        counts = np.bincount(tokens, minlength=vocabulary)
        assert counts[expected == 0].sum() == 0
        # Rare tokens are taken together: the test wants 5 of each kind.
        rare = expected * len(tokens) < 5
        seen = np.append(counts[~rare], counts[rare].sum())
        wanted = np.append(expected[~rare], expected[rare].sum()).astype(np.float64)
        possible = wanted > 0
        wanted = wanted[possible] / wanted[possible].sum() * len(tokens)
        assert chisquare(seen[possible], wanted).pvalue > 0.01


@pytest.mark.parametrize("vocabulary", [97, 5000])
def test_the_ends_of_the_random_numbers_hit_possible_tokens(monkeypatch, vocabulary):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (200, vocabulary)).astype(np.float32)
    first, last = rng.integers(0, vocabulary // 3, 200), rng.integers(vocabulary // 2, vocabulary, 200)
    places = np.arange(vocabulary)
    possible = (places >= first[:, None]) & (places <= last[:, None])
    logits[~possible] = -np.inf
    # At the ends of the possible ones stand tokens that are not rounded to nothing.
    np.put_along_axis(logits, np.stack([first, last], axis=1), 0.0, axis=-1)
    rows = SamplingRows.of([sampling()] * 200)
    for number, expected in ((lambda limits, *_: limits * 0, first), (lambda limits, *_: limits - 1, last)):
        monkeypatch.setattr(module, "_uniform_below", number)
        tokens = next_tokens(logits, no_tallies(200, vocabulary), rows, np.zeros(200, np.int32))
        np.testing.assert_array_equal(tokens, expected)


def test_every_random_number_hits_the_token_whose_share_it_falls_into(monkeypatch):
    probabilities = np.array([0, 1, 0, 2, 5, 0, 0, 8, 0]) / 16
    with np.errstate(divide="ignore"):
        logits = np.tile(np.log(probabilities).astype(np.float32), (16, 1))
    monkeypatch.setattr(
        module, "_uniform_below", lambda limits, *_: limits // 16 * jnp.arange(16, dtype=jnp.uint32) + 9
    )
    tokens = next_tokens(logits, no_tallies(16, 9), SamplingRows.of([sampling()] * 16), np.zeros(16, np.int32))
    assert tokens.tolist() == [1] + 2 * [3] + 5 * [4] + 8 * [7]


def test_random_numbers_are_exact_shares_of_their_limits():
    seeds, steps = np.arange(200, dtype=np.uint32), np.arange(200) % 7
    limits = np.random.default_rng(0).integers(1, 2**32, 200, np.uint32)
    limits[:3] = 1, 2**32 - 1, 2**31
    keys = [jax.random.fold_in(jax.random.key(seed), step) for seed, step in zip(seeds, steps)]
    bits = [int(jax.random.bits(key, dtype=jnp.uint32)) for key in keys]
    numbers = module._uniform_below(limits, seeds, steps)
    assert numbers.tolist() == [number * int(limit) >> 32 for number, limit in zip(bits, limits)]


def test_draw_depends_on_seed_and_step_not_on_the_place_in_the_batch():
    rng = np.random.default_rng(0)
    logits = np.repeat(rng.normal(0, 1, (1, 1000)), 6, axis=0).astype(np.float32)
    tallies = no_tallies(6, 1000)
    seeds, steps = [5, 6, 5, 5, 2**40 + 5, -1], np.array([0, 0, 1, 0, 0, 0])
    tokens = draw(logits, tallies, SamplingRows.of([sampling(seed=seed) for seed in seeds]), steps)
    assert tokens[0] == tokens[3] == tokens[4]
    assert len({int(tokens[row]) for row in (0, 1, 2, 5)}) == 4
    others = [sampling(seed=9, top_k=3), sampling(temperature=0.0), sampling(seed=5)]
    again = draw(logits[:3], no_tallies(3, 1000), SamplingRows.of(others), np.array([3, 1, 0]))
    assert again[2] == tokens[0]


def test_temperature_zero_takes_the_most_likely_after_the_penalties():
    logits = jnp.tile(jnp.array([3.0, 2.5, 2.4, -1.0]), (5, 1))
    tallies = tallies_of(np.zeros((5, 1), int), np.ones((5, 3), int), 4)
    configs = [
        sampling(temperature=0.0),
        sampling(temperature=0.0, repetition_penalty=1.5),
        sampling(temperature=0.0, repetition_penalty=1.2, presence_penalty=-0.5),
        sampling(temperature=0.0, frequency_penalty=-0.3),
        sampling(temperature=1.0, top_k=1),
    ]
    tokens = draw(logits, tallies, SamplingRows.of(configs), np.zeros(5, np.int32))
    assert tokens.tolist() == [0, 2, 1, 1, 0]


@pytest.mark.parametrize("vocabulary", [1, 128, 1000])
def test_greedy_is_the_first_of_the_greatest(vocabulary):
    logits = np.random.default_rng(0).integers(-3, 3, (50, vocabulary)).astype(np.float32)
    logits[-1] = -np.inf
    rows = SamplingRows.of([sampling(temperature=0.0)] * 50)
    tokens = draw(logits, no_tallies(50, vocabulary), rows, np.zeros(50, np.int32))
    np.testing.assert_array_equal(tokens, logits.argmax(axis=-1))


@pytest.mark.parametrize("values", [dict(temperature=0.0), dict(), dict(top_k=3, top_p=0.9, min_p=0.1)], ids=str)
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_broken_rows_yield_valid_ids_and_leave_others_alone(values, broken):
    logits = np.random.default_rng(0).normal(0, 1, (3, 200)).astype(np.float32)
    rows, steps = SamplingRows.of([sampling(**values)] * 3), np.zeros(3, np.int32)
    right = draw(logits, no_tallies(3, 200), rows, steps)
    logits[1] = broken
    logits[2, 100] = np.nan
    tokens = draw(logits, no_tallies(3, 200), rows, steps)
    assert tokens[0] == right[0]
    assert tokens.min() >= 0 and tokens.max() < 200


def test_neither_sorts_nor_draws_a_number_for_every_token():
    rows, tallies = SamplingRows.of([sampling(top_k=3, top_p=0.5)] * 2), no_tallies(2, 1000)
    program = str(jax.make_jaxpr(next_tokens)(jnp.zeros((2, 1000)), tallies, rows, jnp.zeros(2, jnp.int32)))
    assert "sort[" not in program and "top_k[" not in program
    drawn = [line for line in program.splitlines() if "random_bits[" in line]
    assert drawn and not any("1000" in line for line in drawn)


def test_tallies_count_answers_of_running_rows_and_mark_prompts():
    tokens, lengths = jnp.array([[3, 1, 3], [2, 0, 0]]), jnp.array([3, 1])
    tallies = Tallies.of_prompts(tokens, jnp.arange(3) < lengths[:, None], 4)
    assert tallies.prompt.tolist() == [[False, True, False, True], [False, False, True, False]]
    tallies = tallies.counted(jnp.array([2, 1]), jnp.array([True, False])).counted(jnp.array([2, 0]), jnp.ones(2, bool))
    assert tallies.counts.tolist() == [[0, 0, 2, 0], [1, 0, 0, 0]]


def test_bias_adds_to_known_ids_only():
    logits = jnp.zeros((2, 3))
    ids, values = jnp.array([[0, 2, 3], [1, -1, 1]]), jnp.array([[1.0, -jnp.inf, 5.0], [2.0, 7.0, 0.5]])
    assert add_bias(logits, ids, values).tolist() == [[1.0, 0.0, -np.inf], [0.0, 2.5, 0.0]]


@pytest.mark.parametrize("vocabulary", [64, 97])
@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
def test_bits_are_those_of_numpy(vocabulary, dtype):
    words = np.random.default_rng(0).integers(0, 2**32, (3, -(-vocabulary // 32)), np.uint32)
    expected = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")[:, :vocabulary].astype(bool)
    np.testing.assert_array_equal(unpack_bits(jnp.asarray(words.view(dtype)), vocabulary), expected)
    logits = jnp.asarray(np.random.default_rng(1).normal(0, 1, (3, vocabulary)))
    np.testing.assert_array_equal(masked(logits, jnp.asarray(words.view(dtype))), np.where(expected, logits, -np.inf))


@pytest.mark.parametrize(
    "values",
    [
        dict(temperature=-0.1),
        dict(temperature=float("nan")),
        dict(temperature=1e-30),
        dict(top_p=0.0),
        dict(top_p=1.01),
        dict(top_k=-1),
        dict(min_p=1.0),
        dict(min_p=-0.1),
        dict(max_new_tokens=0),
        dict(repetition_penalty=0.0),
        dict(presence_penalty=2.1),
        dict(frequency_penalty=float("nan")),
        dict(frequency_penalty=-float("inf")),
    ],
    ids=str,
)
def test_impossible_values_are_named(values):
    (name,) = values
    with pytest.raises(UserError, match=f"sampling.{name} is "):
        SamplingRows.of([sampling(), sampling(**values)])


def test_huge_top_k_keeps_everything():
    rows = SamplingRows.of([sampling(top_k=2**40)])
    assert np.isfinite(distribution(jnp.zeros((1, 5)), no_tallies(1, 5), rows)).all()
