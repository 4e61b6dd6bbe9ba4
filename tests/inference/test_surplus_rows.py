"""Rows of embeddings that no piece belongs to count in the softmax as in transformers, and are never generated."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers

from gemma_keras.config.errors import UserError
from gemma_keras.inference.constraints.constraint import Regex
from gemma_keras.inference.engine import Engine
from gemma_keras.inference.requests import Request
from gemma_keras.models.forward import EMBEDDINGS, build_backbone
from tests.inference.models import (
    DRAWN,
    GREEDY,
    SMALLEST,
    generate,
    hf_generate,
    hf_model,
    prompts,
    teacher_forced,
    varied_params,
)

PIECES, ROWS = 2560, 2624  # of the builtin tokenizer; two words of a constraint's mask have no piece
PADDED = SMALLEST.replace(vocabulary_size=ROWS, surplus_rows=ROWS - PIECES)
SURPLUS = list(range(PIECES, ROWS))
SHORT = dataclasses.replace(GREEDY, max_new_tokens=16)
GIVEN = prompts(PIECES)


@pytest.fixture(scope="module")
def params():
    params = varied_params(PADDED)
    # So large that one of them is the likeliest nearly everywhere.
    return params | {EMBEDDINGS: params[EMBEDDINGS].at[PIECES:].multiply(4)}


@pytest.fixture(scope="module")
def engine(params, tokenizer) -> Engine:
    return Engine(build_backbone(PADDED, "float32"), params, tokenizer)


@pytest.fixture(scope="module")
def model(params) -> transformers.PreTrainedModel:
    model = hf_model(PADDED)
    with torch.no_grad():
        model.model.embed_tokens.weight[:] = torch.tensor(np.asarray(params[EMBEDDINGS]))
    return model


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_equal_those_of_transformers_without_these_rows(beams, engine, model):
    sampling = dataclasses.replace(SHORT, num_beams=beams)
    for prompt, answer in zip(GIVEN, generate(engine, GIVEN, sampling), strict=True):
        options = {"max_new_tokens": 16, "num_beams": beams}
        assert max(hf_generate(model, prompt, **options)) >= PIECES
        assert answer.tokens == hf_generate(model, prompt, suppress_tokens=SURPLUS, **options)


def test_no_other_way_takes_them(engine):
    drawn = dataclasses.replace(DRAWN, max_new_tokens=16, repetition_penalty=0.5, top_k=5)
    for sampling in (drawn, dataclasses.replace(SHORT, penalty_alpha=0.6, top_k=5)):
        for answer in generate(engine, GIVEN, sampling):
            assert len(answer.tokens) == sampling.max_new_tokens and max(answer.tokens) < PIECES


def test_constraints_leave_them_out(engine, tokenizer):
    request = Request(prompt=GIVEN[0], sampling=SHORT, stop_ids=[1], constraint=Regex("[a-z]{5,9}。"))
    free = dataclasses.replace(request, prompt=GIVEN[1], constraint=None)
    (answer,), (beside,) = engine.generate([request, free])
    assert answer.stopped and tokenizer.decode(answer.tokens).endswith("。")
    assert beside.tokens == engine.generate([free])[0][0].tokens and max(beside.tokens) < PIECES


def test_log_probabilities_are_those_of_the_whole_softmax(engine):
    (answer,) = generate(engine, GIVEN[:1], SHORT, log_probs=3)
    expected = teacher_forced(engine, GIVEN[0], answer)
    assert (expected.argmax(axis=-1) >= PIECES).any()
    own = expected[np.arange(16), answer.tokens]
    np.testing.assert_allclose(answer.log_probs, own, atol=1e-4)
    assert all(token < PIECES for likely in answer.alternatives for token, _ in likely)
    (scored,) = engine.score(GIVEN[0], [answer.tokens], alternatives=3).continuations
    np.testing.assert_allclose(scored.log_probs, own, atol=1e-4)
    assert all(scored.greedy) and all(token < PIECES for likely in scored.alternatives for token, _ in likely)


def test_they_are_no_tokens_of_a_prompt(engine):
    with pytest.raises(UserError, match="token id 2560, the model knows 0 to 2559"):
        engine.generate([Request(prompt=[5, PIECES], sampling=SHORT)])
