"""Perplexity against transformers' loss, and its weighting by tokens."""

import math

import numpy as np
import pytest

from gemma_keras.models.forward import build_backbone, forward, logits
from gemma_keras.text.templates import CLOSING, CONTENT, PROMPT
from gemma_keras.training.objectives.token_figures import make_evaluator, summarise
from tests.models.conftest import lively_params, small


def make_batch(rng, rows=3, length=20):
    tokens = rng.integers(0, 97, (rows, length)).astype(np.int32)
    kinds = rng.integers(PROMPT, CONTENT + 1, tokens.shape).astype(np.uint8)
    kinds[:, -1] = 0
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "target_kinds": kinds,
        "segment_ids": np.ones_like(tokens),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape).copy(),
    }


def test_figures_equal_a_slow_reference():
    rng = np.random.default_rng(0)
    backbone, params = build_backbone(small(), "float32"), lively_params(small())
    batches = [make_batch(rng), make_batch(rng)]
    figures = make_evaluator(backbone)(params, batches)
    for subset, kinds in {
        "all": (PROMPT, CLOSING, CONTENT),
        "response": (CLOSING, CONTENT),
        "content": (CONTENT,),
    }.items():
        nll, correct = [], []
        for batch in batches:
            hidden = forward(backbone, params, batch["tokens"], batch["positions"], batch["segment_ids"])
            scores = np.asarray(logits(backbone, params, hidden), np.float64)
            log_probs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
            for b, t in zip(*np.where(np.isin(batch["target_kinds"], kinds)), strict=True):
                nll.append(-log_probs[b, t, batch["targets"][b, t]])
                correct.append(scores[b, t].argmax() == batch["targets"][b, t])
        assert figures[f"perplexity_{subset}"] == pytest.approx(math.exp(np.mean(nll)), rel=1e-4)
        assert figures[f"accuracy_{subset}"] == pytest.approx(np.mean(correct))
        assert figures[f"tokens_{subset}"] == len(nll)


def test_perplexity_is_weighted_by_tokens_not_by_batches():
    totals = np.zeros((3, 3))
    totals[:, 2] = [1 * math.log(2) + 3 * math.log(4), 2, 4]
    figures = summarise(totals)
    assert figures["perplexity_content"] == pytest.approx(2 ** (7 / 4))
    assert figures["loss_response"] == pytest.approx(math.log(2) * 7 / 4)
    assert figures["accuracy_content"] == 0.5


def test_subsets_without_tokens_are_left_out():
    totals = np.zeros((3, 3))
    totals[:, 0] = [3.0, 1, 2]
    assert set(summarise(totals)) == {"loss_all", "perplexity_all", "accuracy_all", "tokens_all"}


def test_padding_does_not_count():
    rng = np.random.default_rng(1)
    backbone, params = build_backbone(small(), "float32"), lively_params(small())
    evaluate, batch = make_evaluator(backbone), make_batch(rng)
    padded = {name: np.concatenate([array, np.zeros_like(array)]) for name, array in batch.items()}
    figures, expected = evaluate(params, [padded]), evaluate(params, [batch])
    assert figures == pytest.approx(expected, rel=1e-5)
