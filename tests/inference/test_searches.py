"""Beam search against transformers, contrastive search against its definition."""

import dataclasses

import pytest
import torch

from gemma_keras.config.errors import UserError
from gemma_keras.inference.engine import Engine
from gemma_keras.inference.requests import Request
from gemma_keras.models.forward import EMBEDDINGS, build_backbone
from tests.inference.models import GREEDY, SMALLEST, hf_model, prompts, varied_params

BEAMS = dataclasses.replace(GREEDY, max_new_tokens=20, num_beams=4)
CONTRASTIVE = dataclasses.replace(GREEDY, max_new_tokens=20, penalty_alpha=0.6, top_k=5)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(build_backbone(SMALLEST, "float32"), varied_params(SMALLEST))


@pytest.fixture(scope="module")
def model():
    return hf_model(SMALLEST)


def their_beams(model, prompt, sampling, stop_ids, count):
    tokens = torch.tensor([prompt])
    found = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), num_beams=sampling.num_beams, num_return_sequences=count,
        do_sample=False, max_new_tokens=sampling.max_new_tokens, length_penalty=sampling.length_penalty,
        eos_token_id=stop_ids, repetition_penalty=sampling.repetition_penalty, pad_token_id=0,
    )  # fmt: skip
    rows = found[:, len(prompt) :].tolist()
    return [row[: next((i for i, token in enumerate(row) if token in stop_ids), len(row))] for row in rows]


@pytest.mark.parametrize(
    ("stop_ids", "changes"),
    [
        ([3, 17, 40, 61], {}),
        pytest.param([3], {"length_penalty": 0.0}, marks=pytest.mark.long),
        ([3, 17], {"length_penalty": 2.0, "repetition_penalty": 1.2}),
        pytest.param([3, 17], {"length_penalty": -0.5, "num_beams": 2}, marks=pytest.mark.long),
    ],
)
def test_beams_equal_those_of_transformers(engine, model, stop_ids, changes):
    sampling = dataclasses.replace(BEAMS, **changes)
    count = min(3, sampling.num_beams)
    requests = [Request(prompt=p, sampling=sampling, stop_ids=stop_ids, samples=count) for p in prompts()]
    for prompt, beams in zip(prompts(), engine.generate(requests), strict=True):
        assert [beam.tokens for beam in beams] == their_beams(model, prompt, sampling, stop_ids, count)


@pytest.mark.long
def test_beams_find_likelier_answers_than_greedy_search(engine, model):
    """And fewer rows at a time change nothing."""
    requests = [Request(prompt=prompt, sampling=BEAMS) for prompt in prompts()]
    found = engine.generate(requests)
    assert Engine(engine.backbone, engine.params, max_rows=4).generate(requests) == found
    greedy = engine.generate(
        [dataclasses.replace(r, sampling=dataclasses.replace(BEAMS, num_beams=1)) for r in requests]
    )
    assert any(beams[0].tokens != best[0].tokens for beams, best in zip(found, greedy, strict=True))


def by_definition(model, prompt, alpha, k, count):
    """Each candidate through the whole model."""
    tokens = list(prompt)

    def run(ids):
        with torch.no_grad():
            output = model(torch.tensor([ids]), output_hidden_states=True)
        return output.logits[0, -1], torch.nn.functional.normalize(output.hidden_states[-1][0], dim=-1)

    for _ in range(count):
        scores, states = run(tokens)
        probabilities, candidates = torch.softmax(scores, -1).topk(k)
        judged = [
            (1 - alpha) * probability - alpha * (states @ run([*tokens, int(candidate)])[1][-1]).max()
            for probability, candidate in zip(probabilities, candidates, strict=True)
        ]
        tokens.append(int(candidates[int(torch.stack(judged).argmax())]))
    return tokens[len(prompt) :]


def test_contrastive_search_equals_its_definition(engine, model):
    weights = (0.6, 0.6, 0.2, 1.0)
    configs = [dataclasses.replace(CONTRASTIVE, penalty_alpha=alpha, top_k=3 + n) for n, alpha in enumerate(weights)]
    requests = [Request(prompt=p, sampling=c) for p, c in zip(prompts(), configs, strict=True)]
    for request, (answer,) in zip(requests, engine.generate(requests), strict=True):
        alpha, k = request.sampling.penalty_alpha, request.sampling.top_k
        assert answer.tokens == by_definition(model, request.prompt, alpha, k, 20)
        assert not answer.stopped
    cut = engine.generate([dataclasses.replace(r, stop_ids=answer[0].tokens[5:6])
                           for r, answer in zip(requests, engine.generate(requests), strict=True)])  # fmt: skip
    for whole, (short,) in zip(engine.generate(requests), cut, strict=True):
        assert short.stopped and short.tokens == whole[0].tokens[: whole[0].tokens.index(whole[0].tokens[5])]


def test_searches_refuse_what_they_do_not_know(engine):
    for sampling, options, message in (
        (BEAMS, {"samples": 5}, "4 answers, 5 samples"),
        (BEAMS, {"log_probs": 0}, "beam search does not work with log_probs"),
        (CONTRASTIVE, {"logit_bias": {1: 1.0}}, "contrastive search does not work with logit_bias"),
        (dataclasses.replace(BEAMS, penalty_alpha=0.5), {}, "both num_beams and penalty_alpha"),
        (dataclasses.replace(BEAMS, num_beams=0), {}, "num_beams is 0"),
        (dataclasses.replace(CONTRASTIVE, penalty_alpha=1.5), {}, "penalty_alpha is 1.5"),
    ):
        with pytest.raises(UserError, match=message):
            engine.generate([Request(prompt=[5], sampling=sampling, **options)])
    with pytest.raises(UserError, match="by beam"):
        next(engine.stream(Request(prompt=[5], sampling=BEAMS)))


@pytest.mark.parametrize("sampling", [BEAMS, CONTRASTIVE], ids=["beam", "contrastive"])
def test_broken_logits_are_told(engine, sampling):
    params = varied_params(SMALLEST)
    params[EMBEDDINGS] = params[EMBEDDINGS].at[7].set(float("nan"))
    with pytest.raises(UserError, match="logits for prompt 0 are not finite after 0 new tokens"):
        Engine(engine.backbone, params).generate([Request(prompt=[5, 6], sampling=sampling)])
