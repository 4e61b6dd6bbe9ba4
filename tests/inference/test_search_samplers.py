"""Contrastive search against brute force, beams against transformers, in `GemmaCausalLM.generate` on ragged prompts."""

import json

import keras
import keras_hub
import numpy as np
import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.inference.keras_hub.search_samplers import BeamSampler, ContrastiveSampler
from tests.inference.causal_lms import answers_of, build_causal_lm, uncached_states
from tests.inference.models import SMALLEST, hf_generate, hf_model, prompts

# keras_hub divides queries by the root of head_dim, whatever the shape says.
SHAPE = SMALLEST.replace(num_layers=1, query_pre_attn_scalar=16)
LENGTHS = (9, 2, 1, 14)
PLACES = 30
STOPS = tuple(range(3, 97, 9))
PROMPTS = prompts(lengths=LENGTHS)


@pytest.fixture(scope="module")
def causal_lm() -> keras_hub.models.GemmaCausalLM:
    return build_causal_lm(SHAPE)


@pytest.fixture(scope="module")
def states_of(causal_lm):
    return uncached_states(causal_lm, PLACES)


def contrastive(states_of, prompt: list[int], alpha: float, k: int, stops: tuple[int, ...]) -> list[int]:
    """Contrastive search by its definition: a forward pass for each candidate."""
    tokens = list(prompt)
    while len(tokens) < PLACES and not set(tokens[len(prompt) :]) & set(stops):
        earlier, logits = states_of(tokens)
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        scores = {}
        for token in np.argsort(-probabilities)[:k].tolist():
            own = states_of([*tokens, token])[0][-1]
            cosines = earlier @ own / (np.linalg.norm(earlier, axis=-1) * np.linalg.norm(own))
            scores[token] = (1 - alpha) * probabilities[token] - alpha * cosines.max()
        tokens.append(max(scores, key=scores.__getitem__))
    return tokens[len(prompt) :]


def test_contrastive_search_equals_brute_force(causal_lm, states_of):
    causal_lm.compile(sampler=ContrastiveSampler(0.6, 4))
    answers = answers_of(causal_lm, PROMPTS, PLACES, STOPS)
    assert answers == [contrastive(states_of, prompt, 0.6, 4, STOPS) for prompt in PROMPTS]
    greedy = [contrastive(states_of, prompt, 0.0, 1, STOPS) for prompt in PROMPTS]
    assert sum(own != other for own, other in zip(answers, greedy)) > 2
    assert any(answer[-1] in STOPS for answer in answers)


@pytest.mark.parametrize(
    "beams, penalty, stops",
    [pytest.param(3, 1.0, STOPS, marks=pytest.mark.long, id="by length"), pytest.param(4, 0.0, (21, 30), id="by sum")],
)
def test_beams_equal_transformers(causal_lm, beams, penalty, stops):
    causal_lm.compile(sampler=BeamSampler(beams, penalty))
    model = hf_model(SHAPE)
    options = dict(num_beams=beams, length_penalty=penalty, eos_token_id=list(stops) or None, early_stopping=False)
    expected = [hf_generate(model, prompt, max_new_tokens=PLACES - len(prompt), **options) for prompt in PROMPTS]
    assert answers_of(causal_lm, PROMPTS, PLACES, stops or None) == expected
    greedy = [hf_generate(model, prompt, max_new_tokens=PLACES - len(prompt)) for prompt in PROMPTS]
    assert sum(own != other[: len(own)] for own, other in zip(expected, greedy)) > 1
    if stops:
        assert any(answer[-1] in stops for answer in expected)


@pytest.mark.parametrize("sampler", [ContrastiveSampler(0.5, 3), BeamSampler(3, 0.5)], ids=lambda s: type(s).__name__)
def test_samplers_are_serialised(causal_lm, sampler):
    written = json.loads(json.dumps(keras_hub.samplers.serialize(sampler)))
    for read in (keras_hub.samplers.deserialize(written), keras.saving.deserialize_keras_object(written)):
        assert type(read) is type(sampler) and read.get_config() == sampler.get_config()
    causal_lm.compile(sampler=written)
    assert causal_lm.sampler.get_config() == sampler.get_config()


def test_impossible_settings_are_named():
    with pytest.raises(UserError, match="penalty_alpha=1.5"):
        ContrastiveSampler(1.5)
    with pytest.raises(UserError, match="top_k=0"):
        ContrastiveSampler(0.5, 0)
    with pytest.raises(UserError, match="num_beams is 0"):
        BeamSampler(0)
