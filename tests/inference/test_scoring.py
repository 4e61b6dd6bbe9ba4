"""Log-probabilities of given tokens against a plain forward pass, and how they run beside answers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gemma_keras.config.errors import UserError
from gemma_keras.inference.engine import Engine
from gemma_keras.inference.prefill import PromptReader
from gemma_keras.inference.prefix_cache import BLOCK
from gemma_keras.inference.requests import Request, ScoreRequest
from gemma_keras.models.forward import EMBEDDINGS, build_backbone, forward, logits
from tests.inference.models import GREEDY, SMALLEST, hf_model, prompts, varied_params

FEW = dataclasses.replace(GREEDY, max_new_tokens=20)
LONGEST = 1280


@functools.cache
def compiled(engine):
    """The forward pass of one packed row [1, LONGEST], compiled once."""

    def log_probs(params, tokens, segment_ids):
        positions = jnp.arange(LONGEST)[None]
        return jax.nn.log_softmax(
            logits(engine.backbone, params, forward(engine.backbone, params, tokens, positions, segment_ids))
        )

    return jax.jit(log_probs)


def plain(engine, tokens) -> np.ndarray:
    """Log-probabilities [n - 1, V] of all tokens after each but the last, by one forward pass over a padded row."""
    row = np.zeros((2, 1, LONGEST), np.int32)
    row[:, 0, : len(tokens)] = tokens, [1] * len(tokens)
    return np.asarray(compiled(engine)(engine.params, *row)[0, : len(tokens) - 1])


def agrees(found, expected, tokens, alternatives=0):
    own = expected[np.arange(len(tokens)), tokens]
    np.testing.assert_allclose(found.log_probs, own, atol=1e-4)
    assert found.log_prob == pytest.approx(own.sum(), abs=1e-3)
    assert found.greedy == (own == expected.max(axis=-1)).tolist()
    for place, likely in enumerate(found.alternatives):
        ids, values = zip(*likely, strict=True) if alternatives else ((), ())
        np.testing.assert_allclose(values, np.sort(expected[place])[::-1][:alternatives], atol=1e-4)
        np.testing.assert_allclose(expected[place, list(ids)], values, atol=1e-4)
    assert len(found.alternatives) == len(tokens)


def test_scores_are_those_of_one_forward_pass(engine):
    """One prompt in two pieces, one of a single token, one continuation that is longer than a piece."""
    given = prompts(lengths=(600, 1, 12))
    continuations = [prompts(lengths=(3, 560, 1), seed=1), prompts(lengths=(5,), seed=2), [[7], [], [8, 9]]]
    requests = [
        ScoreRequest(prompt=p, continuations=c, prompt_log_probs=n != 2, alternatives=3 if n else 0)
        for n, (p, c) in enumerate(zip(given, continuations, strict=True))
    ]
    for request, score in zip(requests, engine.score_all(requests), strict=True):
        start, count = len(request.prompt) - 1, request.alternatives
        for tokens, found in zip(request.continuations, score.continuations, strict=True):
            agrees(found, plain(engine, [*request.prompt, *tokens])[start:], tokens, count)
        if request.prompt_log_probs:
            agrees(score.prompt, plain(engine, request.prompt), request.prompt[1:], count)
        else:
            assert score.prompt is None


def test_scores_are_those_of_transformers(engine):
    (prompt, *continuations) = prompts(lengths=(30, 6, 2))
    score = engine.score(prompt, continuations, prompt_log_probs=True)
    for tokens, found in zip([[], *continuations], [score.prompt, *score.continuations], strict=True):
        whole = [*prompt, *tokens]
        with torch.no_grad():
            expected = torch.log_softmax(hf_model(SMALLEST)(torch.tensor([whole])).logits[0], dim=-1).numpy()
        first = len(prompt) if tokens else 1
        scored = whole[first:]
        np.testing.assert_allclose(
            found.log_probs, expected[np.arange(first - 1, len(whole) - 1), scored], atol=1e-4, rtol=1e-4
        )


def test_what_prompts_share_is_read_once(engine, monkeypatch):
    keeping = Engine(build_backbone(SMALLEST, "float32"), varied_params(SMALLEST), prefix_tokens=8 * BLOCK)
    system, *tails = prompts(lengths=(2 * BLOCK + 10, 5, 9))
    read, prefill = [], PromptReader._prefill

    def counting(self, params, state, group, *rest, **options):
        read.extend(prompt.left for prompt in group)
        return prefill(self, params, state, group, *rest, **options)

    monkeypatch.setattr(PromptReader, "_prefill", counting)
    requests = [ScoreRequest(prompt=[*system, *tail], continuations=[[5], [6], [7, 8]]) for tail in [*tails, tails[0]]]
    scores = keeping.score_all(requests)
    assert sorted(read) == sorted([2 * BLOCK + 14, 18])
    for request, score in zip(requests, scores, strict=True):
        for tokens, found in zip(request.continuations, score.continuations, strict=True):
            agrees(found, plain(keeping, [*request.prompt, *tokens])[len(request.prompt) - 1 :], tokens)


def test_scores_run_beside_answers(engine):
    asked = ScoreRequest(prompt=[5, 6, 7], continuations=[[8], [9, 10]])
    expected = engine.score_all([asked])[0]
    ((answer,),) = engine.generate([Request(prompt=[5, 6], sampling=FEW)])
    score, free = engine.submit(asked), engine.submit(Request(prompt=[5, 6], sampling=FEW))
    engine.step(3)
    assert len(free.tokens) == 3 and not score.done
    while not (score.done and free.done):
        engine.step(3)
    assert score.score == expected and free.completion == answer


@pytest.mark.parametrize(
    ("request_of", "message"),
    [
        ({"prompt": []}, "prompt 0 is empty"),
        ({"prompt": [5], "continuations": [[97]]}, "continued id 97"),
        ({"prompt": [5] * 2000, "continuations": [[6] * 49]}, "with a continuation of 49 exceeds"),
        ({"prompt": [5], "alternatives": 21}, "alternatives is 21"),
    ],
)
def test_impossible_scores(engine, request_of, message):
    with pytest.raises(UserError, match=message):
        engine.score_all([ScoreRequest(**request_of)])


def test_scores_that_are_not_finite_are_an_error(engine):
    params = varied_params(SMALLEST)
    params[EMBEDDINGS] = params[EMBEDDINGS].at[7].set(jnp.nan)
    with pytest.raises(UserError, match="prompt 0 are not finite"):
        Engine(engine.backbone, params, max_rows=4).score([5, 6], [[8]])
