"""Streams of tokens against `Tokenizer.decode` of all of them, and stop strings against a plain search."""

import random

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.inference.text_stream import StopStrings, TextStream

TEXTS = ["春天的花有哪些？", "龘😀靐 é\u2581b", "<eos>\n\n  \t", "aaabaaab", "\ufffd\x00�"]


def streamed(tokenizer, tokens, stops, rng) -> tuple[TextStream, list[str]]:
    """A finished stream that got `tokens` in parts, and what it returned, `finish` last."""
    stream, parts, start = TextStream(tokenizer, stops), [], 0
    while start < len(tokens):
        end = start + rng.randint(0, 4)
        parts.append(stream.push(tokens[start:end]))
        assert tokenizer.decode(tokens).startswith("".join(parts)) and stream.text == "".join(parts)
        start = end
    parts.append(stream.finish())
    assert stream.text == "".join(parts) and stream.finish() == "" == stream.push([])
    return stream, parts


def cut(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """`text` before the stop string that is complete first, the longest of those; and whether there is one."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


def beginning(text: str, stops: tuple[str, ...]) -> int:
    """The length of the longest end of `text` that begins a stop string."""
    sizes = range(min(len(text), max(map(len, stops), default=0)), 0, -1)
    return next((size for size in sizes if any(stop.startswith(text[-size:]) for stop in stops)), 0)


def test_parts_add_up_to_the_decoded_text(tokenizer):
    rng = random.Random(0)
    single = [token for token in range(tokenizer.vocabulary_size) if tokenizer.is_byte(token)]
    for _ in range(3000):
        share = rng.choice([0, 0.3, 0.9])
        tokens = [
            rng.choice(single) if rng.random() < share else rng.randrange(tokenizer.vocabulary_size)
            for _ in range(rng.randint(0, 12))
        ]
        text = tokenizer.encode_content(rng.choice(TEXTS))
        # Texts cut anywhere, also within characters.
        tokens += text[rng.randint(0, len(text)) :] + text[: rng.randint(0, len(text))]
        stream, parts = streamed(tokenizer, tokens, (), rng)
        assert "".join(parts) == tokenizer.decode(tokens) and not stream.stopped


def test_a_character_comes_when_its_last_byte_does(tokenizer):
    stream = TextStream(tokenizer)
    tokens = tokenizer.encode_content("😀龘a")
    assert len(tokens) == 8
    assert [stream.push([token]) for token in tokens] == ["", "", "", "😀", "", "", "龘", "a"]


def test_bytes_that_are_no_character(tokenizer):
    first = tokenizer.encode_content("😀")[0]
    stream = TextStream(tokenizer)
    assert [stream.push([first]), stream.push([first]), stream.finish()] == ["", "\ufffd", "\ufffd"]
    stream = TextStream(tokenizer)
    # A control id is no text, but ends a character that is cut.
    assert [stream.push([first]), stream.push([tokenizer.end_of_turn_id]), stream.finish()] == ["", "\ufffd", ""]


def test_stop_strings_against_a_plain_search(tokenizer):
    rng, found = random.Random(1), 0
    for _ in range(3000):
        stops = tuple("".join(rng.choices("ab龘\n", k=rng.randint(1, 5))) for _ in range(rng.randint(0, 4)))
        tokens = tokenizer.encode_content("".join(rng.choices("ab龘\n", k=rng.randint(0, 14))))
        expected, stopped = cut(tokenizer.decode(tokens), stops)
        stream, parts = streamed(tokenizer, tokens, stops, rng)
        assert ("".join(parts), stream.stopped) == (expected, stopped)
        found += stopped
    assert 1000 < found < 2500


def test_all_that_is_certain_is_returned(tokenizer):
    rng = random.Random(2)
    for _ in range(1000):
        stops = tuple("".join(rng.choices("ab", k=rng.randint(2, 6))) for _ in range(rng.randint(1, 3)))
        tokens = [tokenizer.encode_content(letter)[0] for letter in rng.choices("abc", k=12)]
        stream = TextStream(tokenizer, StopStrings(stops))
        for end in range(1, len(tokens) + 1):
            stream.push(tokens[end - 1 : end])
            text, stopped = cut(tokenizer.decode(tokens[:end]), stops)
            assert stream.stopped == stopped
            if stopped:
                assert stream.text == text
                break
            assert stream.text == text[: len(text) - beginning(text, stops)]


def test_nothing_comes_after_a_stop_string(tokenizer):
    stream = TextStream(tokenizer, ["停"])
    assert stream.push(tokenizer.encode_content("好停了")) == "好" and stream.stopped
    assert stream.push(tokenizer.encode_content("好")) == stream.finish() == "" and stream.text == "好"


def test_a_stop_string_of_what_finish_adds(tokenizer):
    stream = TextStream(tokenizer, ["a\ufffd"])
    assert stream.push([*tokenizer.encode_content("ba"), tokenizer.encode_content("😀")[0]]) == "b"
    assert stream.finish() == "" and stream.stopped and stream.text == "b"


def test_many_stop_strings_are_shared_by_streams(tokenizer):
    stops = StopStrings(f"停止{number}号" for number in range(10_000))
    text = "停止12停止停止9999" * 200
    for ending, stopped in (("号之后", True), ("完", False)):
        stream = TextStream(tokenizer, stops)
        for token in tokenizer.encode_content(text + ending):
            stream.push([token])
        stream.finish()
        assert stream.stopped == stopped
        assert stream.text == (text.removesuffix("停止9999") if stopped else text + ending)


def test_a_text_that_always_may_begin_a_long_stop_string(tokenizer):
    (letter,) = tokenizer.encode_content("a")
    stream = TextStream(tokenizer, ["a" * 3000 + "b"])
    assert "".join(stream.push([letter]) for _ in range(8000)) == "a" * 5000
    assert stream.finish() == "a" * 3000


@pytest.mark.parametrize("stops", [("",), ("a", "")], ids=str)
def test_an_empty_stop_string(stops, tokenizer):
    with pytest.raises(UserError, match="empty stop string"):
        TextStream(tokenizer, stops)
