"""A failure is its own request's; nobody waits for a search to end."""

import dataclasses

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.inference import scheduler
from gemma_keras.inference.constraints.constraint import Regex
from gemma_keras.inference.constraints.matcher import Matcher
from gemma_keras.inference.engine import Engine
from gemma_keras.inference.prefill import PromptReader
from gemma_keras.inference.requests import Request
from tests.inference.models import DRAWN, GREEDY, generate, prompts

FEW = dataclasses.replace(GREEDY, max_new_tokens=20)
BEAMS = dataclasses.replace(GREEDY, max_new_tokens=20, num_beams=2)
CONTRASTIVE = dataclasses.replace(GREEDY, max_new_tokens=20, penalty_alpha=0.5, top_k=2)


def until_done(engine, *sequences):
    while not all(sequence.done for sequence in sequences):
        engine.step()


def test_the_mistake_of_a_call_ends_no_other_one(engine):
    first = engine.submit(Request(prompt=[5, 6, 7], sampling=FEW))
    engine.step(4)
    with pytest.raises(UserError, match="prompt 1 is empty"):
        generate(engine, [[5], []], FEW)
    until_done(engine, first)
    assert [first.completion] == generate(engine, [[5, 6, 7]], FEW)


def test_who_fails_when_read_fails_alone(engine, monkeypatch):
    """Prompts are read together, so all are read once more, one by one."""
    given = [*prompts()[:2], [77, 78, 79], prompts()[2]]
    expected = generate(engine, [given[0], given[1], given[3]], FEW)
    read = PromptReader.read

    def failing(self, params, state, group, *rest):
        if any(prompt.tokens[0] == 77 for prompt in group):
            raise RuntimeError("out of memory")
        return read(self, params, state, group, *rest)

    running = engine.submit(Request(prompt=given[0], sampling=FEW))
    engine.step(4)
    monkeypatch.setattr(PromptReader, "read", failing)
    others = [engine.submit(Request(prompt=prompt, sampling=FEW)) for prompt in given[1:]]
    until_done(engine, running, *others)
    assert [sequence.completion for sequence in (running, others[0], others[2])] == expected
    assert isinstance(others[1].error, RuntimeError)


@pytest.mark.parametrize("config", [FEW, dataclasses.replace(DRAWN, max_new_tokens=20)], ids=["greedy", "drawn"])
def test_a_step_that_fails_once_costs_no_answer(engine, config, monkeypatch):
    """What the device had is computed again from the tokens that the host has."""
    requests = [Request(prompt=prompt, sampling=config, log_probs=0) for prompt in prompts()[:3]]
    expected = engine.generate(requests)
    decode, calls = scheduler.decode, []

    def failing(*arguments, **settings):
        calls.append(arguments)
        if len(calls) == 3:
            raise RuntimeError("lost")
        return decode(*arguments, **settings)

    monkeypatch.setattr(scheduler, "decode", failing)
    sequences = [engine.submit(request) for request in requests]
    while not all(sequence.done for sequence in sequences):
        engine.step(4)
    assert [sequence.completion.tokens for sequence in sequences] == [samples[0].tokens for samples in expected]
    assert all(len(sequence.log_probs) == 20 for sequence in sequences)


def test_a_constraint_that_fails_is_an_error_of_its_own(speaking, monkeypatch):
    stop_ids = [speaking.tokenizer.end_of_turn_id, speaking.tokenizer.eos_id]
    requests = [
        Request(prompt=[5, 6], sampling=FEW, stop_ids=stop_ids, constraint=Regex(pattern))
        for pattern in ("[ab]{8}", "[cd]{8}")
    ]
    ((expected,), _) = speaking.generate(requests)
    for method in ("fill", "accept"):
        sound, spoilt = (speaking.submit(request) for request in requests)
        original = getattr(Matcher, method)

        def failing(self, argument, spoilt=spoilt, original=original):
            if self is spoilt.matcher:
                raise RuntimeError("spoilt")
            return original(self, argument)

        with monkeypatch.context() as patch:
            patch.setattr(Matcher, method, failing)
            until_done(speaking, sound, spoilt)
        assert sound.completion == expected and isinstance(spoilt.error, RuntimeError)


def test_each_request_has_its_own_answer_or_error(engine):
    requests = [Request(prompt=prompt, sampling=FEW) for prompt in ([5, 6], [], [7])]
    first, second, third = engine.generate_each(requests)
    assert [first, third] == engine.generate([requests[0], requests[2]])
    assert isinstance(second, UserError) and "prompt 1 is empty" in str(second)


@pytest.mark.parametrize("search", [BEAMS, CONTRASTIVE], ids=["beams", "contrastive"])
def test_a_search_runs_beside_others(engine, search):
    requests = [Request(prompt=[5, 6, 7], sampling=sampling) for sampling in (search, FEW)]
    expected = [samples[0] for samples in engine.generate(requests)]
    searching, free = (engine.submit(request) for request in requests)
    engine.step(3)
    assert not searching.done and len(free.tokens) == 3
    late = engine.submit(requests[0])
    cancelled = engine.submit(requests[0])
    engine.cancel(cancelled)
    until_done(engine, searching, free, late)
    assert [searching.completion, free.completion, late.completion] == [*expected, expected[0]]
    assert not cancelled.done and not engine.step()


def test_a_search_that_fails_fails_alone(engine, monkeypatch):
    requests = [Request(prompt=prompt, sampling=BEAMS) for prompt in ([5, 6], [77, 78], [7, 8])]
    expected = engine.generate([requests[0], requests[2]])
    cache_of = PromptReader.cache_of

    def failing(self, params, group, *rest):
        if any(prompt[0] == 77 for prompt in group):
            raise RuntimeError("out of memory")
        return cache_of(self, params, group, *rest)

    monkeypatch.setattr(PromptReader, "cache_of", failing)
    few = Engine(engine.backbone, engine.params, max_rows=8)
    sequences = [few.submit(request) for request in requests]
    until_done(few, *sequences)
    assert [[sequences[0].completion], [sequences[2].completion]] == expected
    assert isinstance(sequences[1].error, RuntimeError)
