"""Samplers in `GemmaCausalLM.generate`: against a brute-force loop with transformers' processors, on ragged prompts."""

import json
import re

import jax.numpy as jnp
import keras
import keras_hub
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from gemma_keras import builtin
from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import SamplingConfig
from gemma_keras.inference.constraints.constraint import Choice, JsonSchema, Regex
from gemma_keras.inference.keras_hub import samplers as module
from gemma_keras.inference.keras_hub.samplers import ConstrainedSampler, PenaltySampler, SamplerCall
from tests.inference.causal_lms import answers_of, build_causal_lm, uncached_logits
from tests.inference.models import SMALLEST, prompts

SHAPE = SMALLEST.replace(num_layers=1, vocabulary_size=2560)
LENGTHS = (9, 3, 1, 6)
PLACES = 28
PROMPTS = prompts(2560, LENGTHS)
SETTINGS = [
    dict(temperature=0.0, repetition_penalty=0.7, presence_penalty=-0.5, frequency_penalty=1.0),
    dict(temperature=0.0, repetition_penalty=1.3),
    dict(temperature=0.0, frequency_penalty=2.0),
    dict(temperature=0.0),
]


@pytest.fixture(scope="module")
def causal_lm() -> keras_hub.models.GemmaCausalLM:
    return build_causal_lm(SHAPE)


@pytest.fixture(scope="module")
def logits_of(causal_lm):
    return uncached_logits(causal_lm, PLACES)


def generate(causal_lm, rows: list[list[int]], stop_token_ids=None, places: int = PLACES) -> list[list[int]]:
    return answers_of(causal_lm, rows, places, stop_token_ids)


def config(**values) -> SamplingConfig:
    """A `SamplingConfig` that draws from the whole distribution but for `values`."""
    return SamplingConfig(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, **values})


def expected_scores(logits: np.ndarray, prompt: list[int], answer: list[int], values: SamplingConfig) -> np.ndarray:
    """transformers' processors, and presence and frequency by their formula."""
    tokens, scores = torch.tensor([prompt + answer]), torch.tensor(logits)[None]
    scores = theirs.RepetitionPenaltyLogitsProcessor(values.repetition_penalty)(tokens, scores)
    for token in set(answer):
        scores[0, token] -= values.presence_penalty + values.frequency_penalty * answer.count(token)
    if values.temperature:
        scores = theirs.TemperatureLogitsWarper(values.temperature)(tokens, scores)
    if values.top_k:
        scores = theirs.TopKLogitsWarper(values.top_k)(tokens, scores)
    if values.top_p < 1:
        scores = theirs.TopPLogitsWarper(values.top_p)(tokens, scores)
    return scores[0].numpy()


def brute_force(logits_of, prompt: list[int], values: SamplingConfig, stop_token_ids=()) -> list[int]:
    """The most likely token at each place, one forward pass a token."""
    answer: list[int] = []
    while len(prompt) + len(answer) < PLACES and not set(answer) & set(stop_token_ids):
        answer.append(int(expected_scores(logits_of(prompt + answer), prompt, answer, values).argmax()))
    return answer


@pytest.fixture(scope="module")
def sampler(causal_lm) -> PenaltySampler:
    """One that the model is compiled with once for all tests of `set_rows`."""
    return PenaltySampler()


@pytest.fixture
def answer(causal_lm, sampler):
    """Answers to prompts, each with settings of its own."""

    def call(rows: list[list[int]], configs: list[SamplingConfig]) -> list[list[int]]:
        sampler.set_rows(configs)
        if causal_lm.sampler is not sampler:
            causal_lm.compile(sampler=sampler)
        return generate(causal_lm, rows)

    return call


def test_penalised_greedy_equals_a_loop_with_transformers_processors(answer, logits_of):
    configs = [config(**values) for values in SETTINGS]
    answers = answer(PROMPTS, configs)
    expected = [brute_force(logits_of, prompt, values) for prompt, values in zip(PROMPTS, configs)]
    assert answers == expected
    plain = answer(PROMPTS, [config(temperature=0.0)] * 4)
    assert all(own != other for own, other in zip(answers[:3], plain))
    assert plain == [brute_force(logits_of, prompt, config(temperature=0.0)) for prompt in PROMPTS]


def test_draws_are_possible_and_do_not_depend_on_the_rest_of_the_batch(answer, logits_of):
    values = dict(temperature=0.8, top_k=20, top_p=0.9, repetition_penalty=1.2, presence_penalty=0.5)
    configs = [config(**values, seed=seed) for seed in (5, 6, 7, 5)]
    answers = answer(PROMPTS, configs)
    for prompt, drawn, settings in zip(PROMPTS, answers, configs):
        for place, token in enumerate(drawn):
            scores = expected_scores(logits_of(prompt + drawn[:place]), prompt, drawn[:place], settings)
            assert np.isfinite(scores[token])
    greedy = [brute_force(logits_of, prompt, config(**values | dict(temperature=0.0))) for prompt in PROMPTS]
    assert all(drawn != likely for drawn, likely in zip(answers, greedy))
    order = [2, 0, 3, 1]
    again = answer([PROMPTS[row] for row in order], [configs[row] for row in order])
    assert again == [answers[row] for row in order]
    shorter = PROMPTS[0][:2]
    other = answer([PROMPTS[1], shorter, shorter, shorter], [configs[1], *configs[1:]])
    assert other[0] == answers[1] and other[1] != other[2]


def test_other_settings_are_not_compiled_again_and_rows_are_counted(answer, monkeypatch):
    answer(PROMPTS, [config(seed=seed) for seed in range(4)])
    monkeypatch.setattr(module, "next_tokens", None)
    one, other = (answer(PROMPTS, [config(seed=seed, top_k=9)] * 4) for seed in (0, 1))
    assert one != other
    with pytest.raises(UserError, match="settings of 3 rows and the batch has 4"):
        answer(PROMPTS, [config()] * 3)


def test_one_setting_draws_by_seed_and_row(causal_lm):
    sampler = PenaltySampler(temperature=1.2, seed=1)
    causal_lm.compile(sampler=sampler)
    first, again = (generate(causal_lm, [PROMPTS[0]] * 4, places=16) for _ in range(2))
    assert first == again and len(set(map(tuple, first))) == 4
    seeds = [set(PenaltySampler(seed=seed)._settings_of(4).seed.tolist()) for seed in (1, 2)]
    assert len(set.union(*seeds)) == 8


def test_rows_stop_at_their_own_stop_tokens_only(causal_lm, logits_of):
    greedy = [brute_force(logits_of, prompt, config(temperature=0.0)) for prompt in PROMPTS]
    # A stop token that is in a prompt stops nothing there.
    stops = (greedy[0][3], greedy[1][5], greedy[2][1], greedy[3][0], PROMPTS[0][0])
    expected = [brute_force(logits_of, prompt, config(temperature=0.0), stops) for prompt in PROMPTS]
    assert all(len(short) < len(full) for short, full in zip(expected, greedy))
    causal_lm.compile(sampler=PenaltySampler(temperature=0.0))
    assert generate(causal_lm, PROMPTS, stops) == expected


@pytest.mark.parametrize(
    "sampler",
    [
        PenaltySampler(0.3, 5, 0.9, 0.1, 1.2, 0.5, -0.5, seed=2**40),
        ConstrainedSampler(Choice(("A", "B")), builtin.TOKENIZER, 9, temperature=0.5, seed=3),
        ConstrainedSampler(Regex("[0-9]{3}"), builtin.TOKENIZER),
        ConstrainedSampler(JsonSchema('{"type": "boolean"}'), builtin.TOKENIZER),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_samplers_are_serialised(causal_lm, sampler):
    written = json.loads(json.dumps(keras_hub.samplers.serialize(sampler)))
    for read in (keras_hub.samplers.deserialize(written), keras.saving.deserialize_keras_object(written)):
        assert type(read) is type(sampler) and read.get_config() == sampler.get_config()
    causal_lm.compile(sampler=written)
    assert causal_lm.sampler.get_config() == sampler.get_config()


def test_impossible_settings_are_named():
    with pytest.raises(UserError, match="sampling.min_p is 1"):
        PenaltySampler(min_p=1.0)
    with pytest.raises(UserError, match="choice"):
        ConstrainedSampler({"pattern": "a"}, builtin.TOKENIZER)
    with pytest.raises(UserError, match="an answer of at most 2 tokens"):
        ConstrainedSampler(Regex("[0-9]{30}"), builtin.TOKENIZER, 2)


@pytest.mark.parametrize(
    "constraint, pattern",
    [
        (Regex("(答案：)?[0-9]{2,}[.!]"), "(答案：)?[0-9]{2,}[.!]"),
        (JsonSchema('{"type": "array", "items": {"type": "integer"}, "minItems": 1}'), None),
    ],
    ids=["regex", "json"],
)
def test_constrained_answers_match(causal_lm, tokenizer, constraint, pattern):
    sampler = ConstrainedSampler(constraint, builtin.TOKENIZER)
    sampler.set_rows([config(temperature=temperature) for temperature in (0.0, 1.5, 1.5, 0.0, 1.5)])
    causal_lm.compile(sampler=sampler)
    stop = tokenizer.eos_id
    # The last two rows have little room.
    rows = [*PROMPTS[:3], *prompts(2560, (PLACES - 10, PLACES - 9))]
    for prompt, tokens in zip(rows, generate(causal_lm, rows, (stop,))):
        assert tokens[-1] == stop or len(prompt) + len(tokens) == PLACES
        assert stop not in tokens[:-1]
        text = tokenizer.decode(tokens)
        assert re.fullmatch(pattern, text) if pattern else isinstance(json.loads(text), list)


def test_a_choice_is_the_most_likely_of_the_options(causal_lm, logits_of, tokenizer):
    options = ("A", "B", "C", "D")
    causal_lm.compile(sampler=ConstrainedSampler(Choice(options), builtin.TOKENIZER, temperature=0.0))
    # Some pieces are single bytes, which spell the same letters.
    possible = [token for token in range(tokenizer.vocabulary_size) if tokenizer.decode([token]) in options]
    answers = generate(causal_lm, PROMPTS, (tokenizer.eos_id,))
    for prompt, tokens in zip(PROMPTS, answers):
        logits = logits_of(prompt)
        assert tokens == [max(possible, key=lambda token: logits[token]), tokenizer.eos_id]
    assert len(set(map(tuple, answers))) > 1


def test_too_little_room_for_a_constraint_is_told():
    sampler = ConstrainedSampler(Regex("[0-9]{40}"), builtin.TOKENIZER, 40)
    call = SamplerCall(
        next=None, prompt=jnp.zeros((2, 25), jnp.int32), mask=None, stop_token_ids=None, hidden_states=None
    )
    with pytest.raises(Exception, match="UserError: .*at most 22 tokens"):
        sampler.first_notes(call, jnp.array([3, 6])).block_until_ready()
