"""Spellings in few tokens against brute force, and the search for ends against all texts of few tokens."""

import doctest
import json
import random
import re

import llguidance
import pytest

from gemma_keras.inference.constraints import constraint as grammar
from gemma_keras.inference.constraints import pieces
from gemma_keras.inference.constraints.constraint import Choice, JsonSchema, Regex, literals
from gemma_keras.inference.constraints.endings import DEEP, QUICK, THOROUGH, Ends
from gemma_keras.inference.constraints.grammars import Grammars
from gemma_keras.inference.constraints.pieces import Closing, Pieces

BYTES = [bytes([byte]) for byte in range(256)]
STOP = 300


@pytest.fixture(scope="module")
def toy() -> tuple[Pieces, llguidance.LLTokenizer]:
    """The bytes, words of the letters a to c, and a stop token."""
    rng = random.Random(0)
    words = sorted({"".join(rng.choices("abc", k=rng.randint(2, 4))) for _ in range(60)})[: STOP - 256]
    spelled = [*BYTES, *(word.encode() for word in words)]
    spelled += [b"<unused>"] * (STOP - len(spelled)) + [b"<stop>"]
    special = range(256 + len(words), STOP + 1)

    class Vocabulary:
        tokens, special_token_ids, eos_token_id, bos_token_id = spelled, list(special), STOP, None

        def __call__(self, text: bytes) -> list[int]:
            return list(text)

    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Vocabulary()), eos_token=STOP)
    return Pieces(spelled, special, range(256)), tokenizer


def matcher_of(tokenizer: llguidance.LLTokenizer, pattern: str) -> llguidance.LLMatcher:
    matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_regex(pattern), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


@pytest.mark.parametrize("module", [grammar, pieces])
def test_examples_of_docstrings(module):
    assert doctest.testmod(module) == (0, doctest.testmod(module).attempted) and doctest.testmod(module).attempted


def fewest(text: bytes, words: set[bytes]) -> int | None:
    """The fewest words that spell `text`, by trying all first words."""
    if not text:
        return 0
    rests = [fewest(text[len(word) :], words) for word in words if text.startswith(word)]
    return min((rest + 1 for rest in rests if rest is not None), default=None)


def test_spellings_are_the_shortest():
    rng = random.Random(0)
    spelled_at_all = 0
    for _ in range(300):
        words = {"".join(rng.choices("ab", k=rng.randint(1, 4))).encode() for _ in range(rng.randint(1, 5))}
        text = "".join(rng.choices("ab", k=rng.randint(0, 9))).encode()
        vocabulary = Pieces([b"no text", *words, b""], special=[0])
        found, expected = vocabulary.closing(text), fewest(text, words)
        if found is None or expected is None:
            assert found is expected is None
            continue
        spelled_at_all += 1
        for offset in range(len(text) + 1):
            rest = fewest(text[offset:], words)
            assert found.counts[offset] == rest if rest is not None else found.counts[offset] > len(text)
        ids = vocabulary.spelling(found)
        assert len(ids) == expected and b"".join(vocabulary.pieces[token] for token in ids) == text
    assert spelled_at_all > 80


def test_learnt_pieces_are_preferred_to_bytes(tokenizer):
    size = tokenizer.vocabulary_size
    single = [token for token in range(size) if tokenizer.is_byte(token)]
    vocabulary = Pieces([tokenizer.piece_bytes(token) for token in range(size)], tokenizer.control_ids, single)
    for text in ("a", "\n", " ", "你"):
        assert vocabulary.spelling(vocabulary.closing(text.encode())) == tokenizer.encode_content(text)
    assert all(map(vocabulary.is_text, single)) and not any(map(vocabulary.is_text, [*tokenizer.control_ids, -1, size]))


def test_the_end_of_an_end():
    whole = Pieces([b"a", b"b", b"ab"]).closing(b"abab")
    assert whole.after(1) == Closing(b"bab", (1, 2, 1), (2, 1, 1, 0))
    assert whole.after(4) == pieces.EMPTY == Closing(b"", (), (0,))


def packed(tokens, size: int) -> bytes:
    words = bytearray(-(-size // 32) * 4)
    for token in tokens:
        words[token // 8] |= 1 << token % 8
    return bytes(words)


def test_samples(toy):
    vocabulary, _ = toy
    few = [7, 70, 260]
    assert sorted(vocabulary.samples(packed(few, 301))) == few
    everything = vocabulary.samples(packed(range(301), 301))
    sampled = [vocabulary.pieces[token] for token in everything]
    assert {b'"', b"[", b" ", b"\n"} <= set(sampled) and len(sampled) < 100
    assert sum(piece[:1].isdigit() for piece in sampled) == 2
    assert max(map(len, sampled)) == 4 and not any(piece[0] >= 0x80 or piece == b"\\" for piece in sampled)
    parts = range(0x80, 0xC0)
    assert set(vocabulary.samples(packed(parts, 301))) == {0x80, 0xBF}


def random_pattern(rng: random.Random, depth: int = 0) -> str:
    kind = rng.randrange(7 if depth < 3 else 2)
    if kind < 2:
        return rng.choice(["a", "b", "c", "ab", "cab", "[ab]", "[a-c]"])
    inner = random_pattern(rng, depth + 1)
    if kind < 4:
        return inner + random_pattern(rng, depth + 1)
    if kind == 4:
        return f"({inner}|{random_pattern(rng, depth + 1)})"
    return f"({inner})" + rng.choice(["*", "+", "?", "{2}", "{3,5}", "{4}"])


def fewest_of_all(matcher: llguidance.LLMatcher, vocabulary: Pieces, most: int) -> int | None:
    """The fewest tokens that end a text, by reading all texts of at most `most` tokens."""
    if matcher.is_accepting():
        return 0
    read = {b""}
    for count in range(1, most + 1):
        longer = set()
        for text in read:
            for token in range(256, len(vocabulary.pieces)):
                if vocabulary.is_text(token):
                    longer.add(text + vocabulary.pieces[token])
            longer.update(text + letter for letter in (b"a", b"b", b"c"))
        read = {text for text in longer if matcher.validate_tokens(list(text)) == len(text)}
        if any(matcher.validate_tokens([*text, STOP]) == len(text) + 1 for text in read):
            return count
    return None


def test_the_search_against_all_texts(toy):
    vocabulary, tokenizer = toy
    rng, best, compared = random.Random(1), 0, 0
    while compared < 60:
        pattern = random_pattern(rng)
        start = matcher_of(tokenizer, pattern)
        expected = fewest_of_all(start, vocabulary, 3)
        found = Ends(Regex(pattern), start, vocabulary, STOP)._shortest(0, 100)
        assert found is not None and re.fullmatch(pattern, found.text.decode()), pattern
        if expected is not None:
            compared += 1
            assert found.counts[0] >= expected
            best += found.counts[0] == expected
    assert best >= 0.95 * compared


@pytest.mark.parametrize("effort", [QUICK, THOROUGH, DEEP], ids=["quick", "thorough", "deep"])
def test_each_effort_finds_an_end(effort, toy):
    vocabulary, tokenizer = toy
    for pattern in ("(ab)*c", "[ab]{12}", "(a|bb){3}[^a]", "[^q]{3,}q", ".*end", "\\d{3}-[A-Z]"):
        start = matcher_of(tokenizer, pattern)
        ends = Ends(Regex(pattern), start, vocabulary, STOP)
        found = ends._search(start, 100, effort)
        assert found is not None and re.fullmatch(pattern, found.text.decode()), pattern
        assert ends._search(start, 0, effort) is None


def test_the_limit_of_a_search_is_kept(toy):
    vocabulary, tokenizer = toy
    start = matcher_of(tokenizer, "[xyz]{7}")
    ends = Ends(Regex("[xyz]{7}"), start, vocabulary, STOP)
    assert ends._search(start, 6, THOROUGH) is None
    assert ends._search(start, 7, THOROUGH).counts[0] == 7
    # Longer than any answer that is looked for: not even spelled out.
    assert ends._search(matcher_of(tokenizer, "(z{200}){200}"), 50, QUICK) is None


def test_items_that_need_not_be_are_left_out(tokenizer):
    grammars = Grammars(tokenizer, [tokenizer.eos_id])
    item = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    schema = JsonSchema(json.dumps({"type": "array", "items": {**item, "additionalProperties": False}, "minItems": 1}))
    grammars.matcher(schema, 64)
    long = grammars.pieces.closing('[{"name": "甲乙"}, {"name": "丙"}, {"name": ""}]'.encode())
    assert grammars.ends(schema)._without_detours(long).text == b'[{"name":""}]'


def test_known_ends_are_taken_where_they_fit(toy):
    vocabulary, tokenizer = toy
    matcher = matcher_of(tokenizer, "a[bc]{2}a{3}")
    ends = Ends(Regex("a[bc]{2}a{3}"), matcher, vocabulary, STOP)
    hint, other = vocabulary.closing(b"bcaaa"), vocabulary.closing(b"aaa")
    matcher.consume_token(ord("a"))
    assert ends.after(matcher, b"a", [other, hint], 9, ()) is hint
    assert ends.after(matcher, b"a", [other, hint], hint.counts[0] - 1, ()) is None
    assert ends.fits(matcher, vocabulary.closing(b"bcaaa"))
    assert not ends.fits(matcher, vocabulary.closing(b"caaa"))
    found = ends.after(matcher, b"a", [], 9, (QUICK,))
    assert re.fullmatch(b"[bc]{2}a{3}", found.text)
    # Remembered: no effort is needed where the same tokens are allowed.
    assert ends.after(matcher, b"a", [], 9, ()) == found


def test_options_against_all_of_them(toy):
    vocabulary, tokenizer = toy
    rng = random.Random(2)
    options = ["".join(rng.choices("abcx", k=rng.randint(1, 6))).encode() for _ in range(200)]
    constraint = Choice(tuple(option.decode() for option in options))
    known = Ends(constraint, matcher_of(tokenizer, "a"), vocabulary, STOP)
    for text in {option[:end] for option in options for end in range(len(option) + 1)}:
        counts = [vocabulary.closing(o[len(text) :]).counts[0] for o in options if o.startswith(text)]
        for most in (0, 1, 2, 9):
            found = known._option(text, most)
            assert text + found.text in options
            assert found.counts[0] == min(counts) or found.counts[0] <= most
    assert known._option(b"nothing begins so", 9) is None


def test_literals():
    assert literals(Choice(("a", "b"))) == []
    assert literals(Regex(r"[^。]+。\d+元(甲|乙\.)")) == ["乙.", "。", "元", "甲", "乙", "."]
    schema = {"type": "object", "properties": {"name": {"type": "string", "pattern": "^第[0-9]+回$"}}}
    assert literals(JsonSchema(json.dumps(schema))) == ["第", "回"]
    assert literals(JsonSchema(json.dumps(schema, ensure_ascii=False))) == ["第", "回"]
