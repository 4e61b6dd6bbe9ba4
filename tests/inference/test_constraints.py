"""Constrained answers: walks that choose tokens at random or out of spite all end with a whole match, within the limit."""

import itertools
import json
import random
import re

import numpy as np
import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.inference.constraints.constraint import Choice, JsonSchema, Regex
from gemma_keras.inference.constraints.grammars import Grammars, allowed, taken
from gemma_keras.inference.constraints.matcher import Matcher


def of(**properties):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


PATTERNS = [
    r"(ab)*c",
    r"[^\n]+",
    r"[A-D]",
    r"\d{3}-\d{4}",
    r"[a-z]{20}\d{3}",
    r"[\u4e00-\u9fff]{4}",
    r"答案：(对|错)",
    r"思考：[^\n]{5,}\n答案：[A-D]",
    r"(是|不是)，(因为[^。]{3,}。)+",
    r".*答案是[A-D]",
    r"a(b{10})?",
    r"([b-z].{40}|a)",
    r"[^\n]*(\n.{30})?",
    r"(<eos>|甲\u2581| ){2,}",
    r"[^龘]{2,}龘",
]
SCHEMAS = {
    "flat": of(name={"type": "string"}, age={"type": "integer"}, ok={"type": "boolean"}),
    "array": {"type": "array", "items": {"type": "string"}},
    "bounded array": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 3},
    "nested": of(a=of(b={"type": "array", "items": of(x={"type": "number"})}), c={"enum": ["甲", "乙丙", "<eos>", None, 3]}),
    "steps": of(
        steps={"type": "array", "items": of(question={"type": "string", "minLength": 1}), "minItems": 1, "maxItems": 4},
        answer={"type": "string"},
    ),
    "optional": {**of(a={"type": "string"}, b={"type": "integer"}, c={"type": "string"}), "required": []},
    "anything": {"type": "object"},
    "pattern": of(date={"type": "string", "pattern": "^\\d{4}年\\d{1,2}月$"}),
    "tree": {
        "$defs": {"node": of(v={"type": "integer"}, kids={"type": "array", "items": {"$ref": "#/$defs/node"}})},
        "$ref": "#/$defs/node",
    },
    "branches": {
        "anyOf": [of(k={"const": "a"}), of(k={"const": "b"}, w={"type": "array", "items": {"type": "number"}, "minItems": 30})]
    },
}  # fmt: skip
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
WALKS = ("any", "longest", "no quote", "digits", "bytes")


def fits(value, schema, root=None) -> bool:
    """Whether `value` fits a schema of the keywords above."""
    root = root or schema
    if "$ref" in schema:
        return fits(value, root["$defs"]["node"], root)
    if "anyOf" in schema:
        return any(fits(value, branch, root) for branch in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return value in schema.get("enum", [schema.get("const")])
    if not isinstance(value, TYPES[schema["type"]]) or (schema["type"] != "boolean" and isinstance(value, bool)):
        return False
    if isinstance(value, str):
        return len(value) >= schema.get("minLength", 0) and re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, list):
        counts = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return counts and all(fits(item, schema["items"], root) for item in value)
    if isinstance(value, dict) and "properties" in schema:
        properties = schema["properties"]
        present = set(schema["required"]) <= set(value) <= set(properties)
        return present and all(fits(item, properties[key], root) for key, item in value.items())
    return True


def schema_of(name: str) -> JsonSchema:
    return JsonSchema(json.dumps(SCHEMAS[name], ensure_ascii=False))


@pytest.fixture(scope="module")
def grammars(tokenizer) -> Grammars:
    return Grammars(tokenizer, [tokenizer.end_of_turn_id, tokenizer.eos_id])


def tokens_of(bits: np.ndarray) -> list[int]:
    return np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")).tolist()


def mask_of(grammars: Grammars, matcher: Matcher) -> list[int]:
    bits = np.zeros(len(grammars.pieces.pieces) // 32, np.int32)
    matcher.fill(bits)
    return tokens_of(bits)


def chosen(grammars: Grammars, may_come: list[int], walk: str, rng: random.Random) -> int:
    pieces, stops = grammars.pieces.pieces, grammars.stop_ids
    texts = [token for token in may_come if token not in stops]
    if walk == "longest" and texts:
        return max(texts, key=lambda token: len(pieces[token]))
    liked = {
        "no quote": [token for token in texts if b'"' not in pieces[token]],
        "digits": [token for token in texts if pieces[token].isdigit()],
        "bytes": [token for token in texts if len(pieces[token]) == 1 and pieces[token][0] >= 0x80],
    }.get(walk)
    return rng.choice(liked or (texts if walk != "any" and texts else may_come))


def walked(grammars, tokenizer, constraint, limit: int, walk="any", seed=0) -> tuple[str, list[int]]:
    """An answer chosen token by token, and its tokens; the limit and the masks are checked on the way."""
    rng, matcher, tokens = random.Random(seed), grammars.matcher(constraint, limit), []
    while not matcher.finished:
        may_come = mask_of(grammars, matcher)
        assert may_come and tokenizer.control_ids.isdisjoint(set(may_come) - set(grammars.stop_ids))
        token = matcher.accept(chosen(grammars, may_come, walk, rng))
        if token not in grammars.stop_ids:
            tokens.append(token)
    assert len(tokens) <= limit and tokenizer.control_ids.isdisjoint(tokens)
    return tokenizer.decode(tokens), tokens


def least_limit(grammars, constraint) -> int:
    """The smallest limit that is not refused, as the refusal of less says."""
    try:
        grammars.matcher(constraint, 0)
    except UserError as error:
        found = int(re.search(r"shortest found has (\d+)", str(error))[1])
        with pytest.raises(UserError, match="raise max_new_tokens"):
            grammars.matcher(constraint, found - 1)
        return found
    return 0


def limits(least: int) -> list[int]:
    return [least, least + 1, least + 4, least + 17, least + 80]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_walk_matches_the_pattern(pattern, grammars, tokenizer):
    constraint = Regex(pattern)
    answers = set()
    for limit, walk in itertools.product(limits(least_limit(grammars, constraint)), WALKS):
        for seed in range(4 if walk == "any" else 1):
            answer, _ = walked(grammars, tokenizer, constraint, limit, walk, seed)
            assert re.fullmatch(pattern, answer), (limit, walk, seed)
            answers.add(answer)
    assert len(answers) > 1


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_walk_fits_the_schema(name, grammars, tokenizer):
    constraint = schema_of(name)
    answers = set()
    for limit, walk in itertools.product(limits(least_limit(grammars, constraint)), WALKS):
        for seed in range(4 if walk == "any" else 1):
            answer, _ = walked(grammars, tokenizer, constraint, limit, walk, seed)
            assert fits(json.loads(answer), SCHEMAS[name]), (limit, walk, seed, answer)
            answers.add(answer)
    assert len(answers) > 1


OPTIONS = (
    "是",
    "不是",
    "不是的",
    "A",
    "<eos>",
    "<start_of_turn>user",
    "龘靐齉",
    "甲\u2581乙 丙",
    "1+1=2?\n\t\\",
    "很长的一个选项，" * 5,
)


def test_every_walk_gives_an_option(grammars, tokenizer):
    constraint, counts = Choice(OPTIONS), {}
    for option in OPTIONS:
        counts[option] = grammars.pieces.closing(option.encode()).counts[0]
    assert least_limit(grammars, constraint) == min(counts.values()) == 1
    answers = set()
    for limit, seed in itertools.product([*range(1, 20), 60], range(20)):
        answer, tokens = walked(grammars, tokenizer, constraint, limit, "any", seed)
        assert answer in OPTIONS and len(tokens) >= counts[answer]
        answers.add(answer)
    assert answers == set(OPTIONS)


def test_the_shortest_option_is_known_exactly(grammars, tokenizer):
    options = ("很长的一个选项", "龘龘", "春天的花")
    counts = [grammars.pieces.closing(option.encode()).counts[0] for option in options]
    assert counts.index(min(counts)) == 2
    assert least_limit(grammars, Choice(options)) == counts[2]
    for seed in range(10):
        assert walked(grammars, tokenizer, Choice(options), counts[2], "any", seed)[0] == "春天的花"


def test_many_options(grammars, tokenizer):
    options = tuple(f"选项{number}号：{number * 7919 % 10007}" for number in range(2000))
    for limit, seed in itertools.product((least_limit(grammars, Choice(options)), 40), range(5)):
        assert walked(grammars, tokenizer, Choice(options), limit, "any", seed)[0] in options


@pytest.mark.parametrize(
    "constraint, text",
    [
        (Choice(OPTIONS), "不是的"),
        (Choice(OPTIONS), "<start_of_turn>user"),
        (Choice(OPTIONS), "龘靐齉"),
        (Regex(r"(是|不是)，(因为[^。]{3,}。)+"), "不是，因为今天下雨了😀。因为我不想出门。"),
        (Regex(r"思考：[^\n]{5,}\n答案：[A-D]"), "思考：一加一等于二。\n答案：B"),
        (schema_of("flat"), '{"name": "龘龘😀<eos>\\n\\"他\\"", "age": -12, "ok": true}'),
        (schema_of("flat"), '{"name":"","age":0,"ok":false}'),
        (schema_of("steps"), '{"steps": [{"question": "有几个？"}, {"question": "一共几个？"}], "answer": "5 个"}'),
        (schema_of("tree"), '{"v": 1, "kids": [{"v": 2, "kids": []}, {"v": 3, "kids": [{"v": 4, "kids": []}]}]}'),
    ],
    ids=str,
)
def test_with_room_nothing_is_changed(constraint, text, grammars, tokenizer):
    tokens = tokenizer.encode_content(text)
    matcher = grammars.matcher(constraint, 2 * len(tokens) + 40)
    for token in tokens:
        assert not matcher.finished and token in mask_of(grammars, matcher)
        assert matcher.accept(token) == token
    assert matcher.finished or set(grammars.stop_ids) <= set(mask_of(grammars, matcher))
    if not matcher.finished:
        assert matcher.accept(grammars.stop_ids[1]) == grammars.stop_ids[1]
    assert matcher.finished and mask_of(grammars, matcher) == list(grammars.stop_ids)


def test_characters_without_a_piece_of_their_own(grammars, tokenizer):
    constraint = JsonSchema(json.dumps({"type": "array", "items": {"enum": ["龘", "😀", "é"]}, "minItems": 3}))
    for seed in range(5):
        answer, tokens = walked(grammars, tokenizer, constraint, 60, "bytes", seed)
        assert set(json.loads(answer)) <= {"龘", "😀", "é"} and len(tokens) > len(answer)


@pytest.mark.parametrize(
    "constraint, told",
    [
        (Choice(()), "without options"),
        (Choice(("\ud800",)), "surrogate"),
        (Regex("(a"), "unclosed group"),
        (Regex("(?=a)b"), "look-around"),
        (Regex(r"(a)\1"), "backreferences"),
        (Regex("\udfff"), "surrogate"),
        (JsonSchema("{"), "EOF"),
        (JsonSchema("[1]"), "object"),
        (JsonSchema('{"type": "text"}'), "Invalid type: text"),
        (JsonSchema('{"type": "array", "uniqueItems": true}'), "uniqueItems"),
        (JsonSchema('{"type": "integer", "minimum": 5, "maximum": 3}'), "Unsatisfiable"),
    ],
    ids=str,
)
def test_constraints_with_faults(constraint, told, grammars):
    with pytest.raises(UserError, match=told):
        grammars.matcher(constraint, 64)


ENDLESS = {"$defs": {"node": of(next={"$ref": "#/$defs/node"})}, "$ref": "#/$defs/node"}


@pytest.mark.parametrize("constraint", [Regex(r"a[^\s\S]"), JsonSchema(json.dumps(ENDLESS))], ids=str)
def test_constraints_that_nothing_matches(constraint, grammars):
    with pytest.raises(UserError, match="none was found; raise max_new_tokens or loosen"):
        grammars.matcher(constraint, 64)


def test_a_long_answer_that_has_to_be(grammars, tokenizer):
    with pytest.raises(UserError, match="at most 100 tokens"):
        grammars.matcher(Regex("[a-c]{600}"), 100)
    answer, _ = walked(grammars, tokenizer, Regex("[a-c]{600}"), 600)
    assert re.fullmatch("[a-c]{600}", answer)


@pytest.mark.parametrize("constraint", [Choice(("",)), Choice(("", "a")), Regex("a*"), Regex("")], ids=str)
def test_an_empty_answer(constraint, grammars):
    assert grammars.matcher(constraint, 0).finished
    matcher = grammars.matcher(constraint, 5)
    assert matcher.finished or set(grammars.stop_ids) <= set(mask_of(grammars, matcher))


def test_tokens_that_may_not_come_are_refused(grammars, tokenizer):
    matcher = grammars.matcher(Choice(("<eos>", "x")), 20)
    other = tokenizer.encode_content("y")[0]
    for token in (tokenizer.eos_id, tokenizer.end_of_turn_id, tokenizer.bos_id, other, -1, tokenizer.vocabulary_size):
        with pytest.raises(ValueError, match="may not come next"):
            matcher.accept(token)
    for token in tokenizer.encode_content("<eos>"):
        assert matcher.accept(token) == token
    with pytest.raises(ValueError, match="after the answer's end"):
        matcher.accept(tokenizer.eos_id)


@pytest.mark.parametrize("stop_ids", [[], [-1], [2560]], ids=str)
def test_stop_ids_with_faults(stop_ids, tokenizer):
    with pytest.raises(UserError, match="stop ids"):
        Grammars(tokenizer, stop_ids)


def test_a_stop_id_with_a_text_is_no_text(tokenizer):
    (newline,) = tokenizer.encode_content("\n")
    grammars = Grammars(tokenizer, [newline])
    for seed in range(10):
        answer, tokens = walked(grammars, tokenizer, Regex(r"[ab\n]{6}"), 8, "any", seed)
        assert re.fullmatch(r"[ab\n]{6}", answer) and newline not in tokens


def test_copies_go_their_own_way(grammars, tokenizer):
    matcher = grammars.matcher(Regex("[ab]{3}"), 3)
    a, b = (tokenizer.encode_content(letter)[0] for letter in "ab")
    matcher.accept(a)
    copy = matcher.copy()
    for token in (b, b):
        copy.accept(token)
    assert copy.finished and not matcher.finished
    assert [matcher.accept(a), matcher.accept(b)] == [a, b]


def test_masks_are_written_into_whole_rows_only(grammars):
    matcher = grammars.matcher(Regex("a"), 4)
    for bits in (np.zeros((80, 2), np.int32)[:, 0], np.zeros(80, np.int64)):
        with pytest.raises(ValueError, match="contiguous 32-bit"):
            matcher.fill(bits)


@pytest.mark.parametrize("constraint", [schema_of("flat"), Regex(r"(ab)*c"), Choice(OPTIONS)], ids=str)
def test_without_state_the_walk_is_the_same(constraint, grammars, tokenizer):
    limit, tokens = 40, []
    rng, matcher = random.Random(1), grammars.matcher(constraint, 40)
    while not matcher.finished:
        bits = allowed(grammars, constraint, tokens, limit)
        assert tokens_of(bits) == mask_of(grammars, matcher)
        drawn = chosen(grammars, tokens_of(bits), "no quote", rng)
        tokens.append(taken(grammars, constraint, tokens, limit, drawn))
        assert tokens[-1] == matcher.accept(drawn)
    after_end = [*tokens, tokenizer.pad_id, tokenizer.pad_id]
    assert tokens_of(allowed(grammars, constraint, after_end, limit)) == list(grammars.stop_ids)
    assert taken(grammars, constraint, after_end, limit, 5) in grammars.stop_ids


def test_without_state_a_token_that_was_not_taken_is_told(grammars, tokenizer):
    a, b = (tokenizer.encode_content(letter)[0] for letter in "ab")
    assert taken(grammars, Regex("a(b{40})?"), [a], 9, b) in grammars.stop_ids
    with pytest.raises(ValueError, match="too little room"):
        allowed(grammars, Regex("a(b{40})?"), [a, b], 9)


class Spent:
    """A matcher of llguidance that came to one of its limits."""

    def __getattr__(self, name):
        answers = {"is_error": True, "is_stopped": True, "unsafe_compute_mask_ptr": None, "validate_tokens": 0}
        return lambda *arguments: answers.get(name, False)


@pytest.mark.parametrize("filled", [True, False])
def test_where_llguidance_gives_up_the_known_end_is_followed(filled, grammars, tokenizer):
    text = '{"name": "你'
    matcher = grammars.matcher(schema_of("flat"), 60)
    tokens = [matcher.accept(token) for token in tokenizer.encode_content(text)]
    matcher.reader = Spent()
    for _ in range(60):
        if filled:
            (token,) = mask_of(grammars, matcher)
            assert matcher.accept(token) == token
        else:
            token = matcher.accept(tokenizer.encode_content("好")[0])
        tokens.append(token)
        if matcher.finished:
            break
    answer = tokenizer.decode(tokens)
    assert answer.startswith(text) and fits(json.loads(answer), SCHEMAS["flat"])
