"""Streams, stop strings and constraints of an engine that has a tokenizer."""

import dataclasses

import numpy as np
import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.inference.constraints.constraint import Choice, Regex
from gemma_keras.inference.requests import Request
from gemma_keras.inference.text_stream import StopStrings
from tests.inference.models import DRAWN, GREEDY, prompts, teacher_forced


def test_streamed_pieces_are_the_answer(speaking):
    vocabulary = speaking.tokenizer.vocabulary_size
    (prompt,) = prompts(vocabulary=vocabulary, lengths=(20,))
    request = Request(prompt=prompt, sampling=GREEDY, stop_ids=[3])
    ((expected,),) = speaking.generate([request])
    deltas = list(speaking.stream(request))
    assert len(deltas) > 3
    assert "".join(delta.text for delta in deltas) == expected.text == deltas[-1].completion.text
    assert [token for delta in deltas for token in delta.tokens] == expected.tokens
    stop = expected.text[len(expected.text) // 2 :][:3]
    strings = StopStrings([stop, *(f"{number}\n" for number in range(10_000))])
    ((cut,),) = speaking.generate([dataclasses.replace(request, stop_strings=strings)])
    assert cut.text == expected.text[: expected.text.index(stop)] and cut.reason == "stop_string"


def test_a_stream_may_be_left(speaking):
    request = Request(prompt=[5, 6, 7], sampling=GREEDY)
    ((expected,),) = speaking.generate([request])
    pieces = speaking.stream(request)
    next(pieces)
    pieces.close()
    assert not speaking.step()
    assert speaking.generate([request]) == [[expected]]


def test_constrained_rows_beside_free_ones(speaking):
    options = ("甲。", "乙，也对", "<eos>")
    stop_ids = [speaking.tokenizer.end_of_turn_id, speaking.tokenizer.eos_id]
    free = [Request(prompt=p, sampling=GREEDY, stop_ids=stop_ids) for p in prompts(lengths=(12, 5, 3))]
    bound = [
        dataclasses.replace(r, sampling=DRAWN, constraint=Choice(options), stream=n) for n, r in enumerate(free * 4)
    ]
    answers = speaking.generate([*free, *bound])
    assert answers[:3] == speaking.generate(free)
    texts = [samples[0].text for samples in answers[3:]]
    assert set(texts) <= set(options) and len(set(texts)) > 1
    assert all(samples[0].reason == "stop" for samples in answers[3:])


def test_log_probabilities_of_overruled_tokens(speaking):
    """Three tokens are hardly room for the pattern, so that its end takes the place of what was drawn."""
    stop_ids = [speaking.tokenizer.end_of_turn_id, speaking.tokenizer.eos_id]
    drawn = dataclasses.replace(DRAWN, max_new_tokens=3)
    request = Request(
        prompt=[5, 6, 7], sampling=drawn, constraint=Regex("[a-z]{4,60}\\."), stop_ids=stop_ids, log_probs=0
    )
    ((answer,),) = speaking.generate([request])
    expected = teacher_forced(speaking, [5, 6, 7], answer)
    np.testing.assert_allclose(
        answer.log_probs, expected[np.arange(len(answer.tokens)), answer.tokens], atol=1e-4, rtol=0
    )


def test_streams_side_by_side(speaking):
    """Whoever steps the engine, each stream gets all of its pieces; a reset ends them with an error."""
    given = [Request(prompt=prompt, sampling=GREEDY) for prompt in prompts(lengths=(12, 5))]
    expected = [samples[0] for samples in speaking.generate(given)]
    streams = [speaking.stream(request) for request in given]
    pieces = [[next(stream)] for stream in streams]
    assert speaking.generate(given) == [[completion] for completion in expected]
    for stream, found in zip(streams, pieces, strict=True):
        found += stream
    assert [found[-1].completion for found in pieces] == expected
    assert [[token for delta in found for token in delta.tokens] for found in pieces] == [e.tokens for e in expected]
    stream = speaking.stream(given[0])
    next(stream)
    with pytest.raises(UserError, match="unclosed group"):
        speaking.generate([dataclasses.replace(given[1], constraint=Regex("(a"), stop_ids=[1])])
    next(stream)  # a mistake of another call is not its own
    speaking.reset()
    with pytest.raises(UserError, match="reset by another call"):
        list(stream)


def test_nothing_comes_after_a_stop_string(speaking):
    request = Request(prompt=[5, 6, 7], sampling=GREEDY, log_probs=0)
    ((expected,),) = speaking.generate([request])
    stop = expected.text[2:5]
    stopping = dataclasses.replace(request, stop_strings=StopStrings([stop]))
    ((answer,),) = speaking.generate([stopping])
    tokens = [token for delta in speaking.stream(stopping) for token in delta.tokens]
    assert answer.tokens == tokens == expected.tokens[: len(tokens)] and len(answer.log_probs) == len(tokens)
    assert stop in speaking.tokenizer.decode(tokens) and stop not in speaking.tokenizer.decode(tokens[:-1])
