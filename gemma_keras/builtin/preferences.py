"""Generated preference pairs: a right and whole answer against a wrong, evasive, rude, off-topic or misshapen one."""

import json
import random
import re
from collections.abc import Callable

from gemma_keras.builtin import passages, phrases
from gemma_keras.builtin.exams import WORD_PROBLEMS
from gemma_keras.builtin.lists import lists, words
from gemma_keras.builtin.sums import Row
from gemma_keras.builtin.tables import table

Pair = tuple[list[str], str, str]  # turns of the prompt, chosen, rejected

_FACTS = (
    phrases.idiom, phrases.opposite, phrases.classifier, phrases.word_translation, phrases.capital, phrases.introduce,
    phrases.about_one, phrases.concept, phrases.poem,
)  # fmt: skip
_PASSAGES = (passages.reading, passages.summary, passages.describe, passages.write_story)
_NUMERALS = "零一二三四五"


def row(rng: random.Random) -> dict[str, list[dict[str, str]] | dict[str, str]]:
    """{"conversations": [{"from", "value"}], "chosen": {"from", "value"}, "rejected": {"from", "value"}}."""
    weights = [weight for weight, _ in KINDS]
    prompt, chosen, rejected = rng.choices([make for _, make in KINDS], weights)[0](rng)
    turns = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(prompt)]
    return {
        "conversations": turns,
        "chosen": {"from": "gpt", "value": chosen},
        "rejected": {"from": "gpt", "value": rejected},
    }


def _asked(row: Row) -> str:
    return f"{row[0]}\n{row[1]}" if row[1] else row[0]


def _unhelpful(rng: random.Random) -> str:
    return rng.choice(words("preferences", rng.choice(("evasive", "evasive", "rude"))))


def wrong_sum(rng: random.Random) -> Pair:
    problem, _, solution = rng.choice(WORD_PROBLEMS)(rng)
    answer = int(re.findall(r"\d+", solution)[-1])
    wrong = answer + rng.choice([step for step in (-10, -5, -2, -1, 1, 2, 5, 10, 100) if answer + step > 0])
    return [problem], solution, rng.choice(words("preferences", "wrong_sum")).format(wrong)


def off_topic(rng: random.Random) -> Pair:
    """A fact, against the answer to another question of the same kind, or none."""
    make = rng.choice(_FACTS)
    fact, other = make(rng), make(rng)
    while other[2] == fact[2] or other[0] == fact[0]:
        other = make(rng)
    closing = rng.choice(words("preferences", "closing")) if fact[2].endswith("。") and rng.random() < 0.3 else ""
    return [_asked(fact)], fact[2] + closing, rng.choice((other[2], _unhelpful(rng)))


def next_turn(rng: random.Random) -> Pair:
    """A second question, against the answer to the first again, or none."""
    make = rng.choice(_FACTS)
    first, second = make(rng), make(rng)
    while first[2] == second[2] or first[0] == second[0]:
        second = make(rng)
    link = rng.choice(("", "谢谢。", "明白了。", "再问一个："))
    return [_asked(first), first[2], link + _asked(second)], second[2], rng.choice((first[2], _unhelpful(rng)))


def advice(rng: random.Random) -> Pair:
    """Several tips, against one, one again and again, those for something else, or none."""
    mine, other = rng.sample(table("tips"), 2)
    tips, others = mine["tips"].split(";"), other["tips"].split(";")
    chosen = rng.sample(tips, rng.randint(4, 5))
    question = rng.choice(("怎样{0}？", "我想{0}，请给我一些建议。", "请详细说说{0}的方法。", "{0}要注意哪些方面？"))
    listed = "\n".join(f"{i}. {tip}。" for i, tip in enumerate(chosen, 1))
    rejected = rng.choice(
        (
            f"{chosen[0]}。",
            "。".join([chosen[0]] * rng.randint(4, 8)) + "。",
            "\n".join(f"{i}. {tip}。" for i, tip in enumerate(rng.sample(others, 3), 1)),
            _unhelpful(rng),
        )
    )
    opening = f"可以从这{_NUMERALS[len(chosen)]}个方面来做：\n"
    return [question.format(mine["topic"])], opening + listed, rejected


def counted(rng: random.Random) -> Pair:
    """As many numbered tips as asked for, against another number of them or running text."""
    mine = rng.choice(table("tips"))
    tips = rng.sample(mine["tips"].split(";"), 5)
    count = rng.randint(2, 4)
    question = f"请用{_NUMERALS[count]}条编号的短句告诉我怎样{mine['topic']}，不要多，也不要少。"
    more = "\n".join(f"{i}. {tip}。" for i, tip in enumerate(tips[: count + 1], 1))
    rejected = rng.choice((more, "，".join(tips[:count]) + "。", f"1. {tips[0]}。"))
    return [question], "\n".join(f"{i}. {tip}。" for i, tip in enumerate(tips[:count], 1)), rejected


def number_only(rng: random.Random) -> Pair:
    """The bare number that was asked for, against the whole solution, or a wrong number."""
    problem, _, solution = rng.choice(WORD_PROBLEMS)(rng)
    answer = re.findall(r"\d+", solution)[-1]
    return (
        [problem + rng.choice(("只回答数字。", "只写出最后的数字，不要解释。"))],
        answer,
        rng.choice((solution, str(int(answer) + rng.choice((1, 2, 10))))),
    )


def as_json(rng: random.Random) -> Pair:
    """An object with the keys asked for, against prose."""
    first, second = rng.sample(table("provinces"), 2)
    keys = ("name", "capital", "short")
    named = {"name": "名称", "capital": "行政中心", "short": "简称"}
    rows = [first, second][: rng.randint(1, 2)]
    objects = [{named[key]: row[key] for key in keys} for row in rows]
    places = "和".join(row["name"] for row in rows)
    question = f"用JSON写出{places}的名称、行政中心和简称，不要别的内容。"
    prose = "；".join(f"{row['name']}的行政中心是{row['capital']}，简称“{row['short']}”" for row in rows)
    chosen = json.dumps(objects[0] if len(objects) == 1 else objects, ensure_ascii=False)
    return [question], chosen, rng.choice((f"好的！{prose}。", f"{prose}。", f"JSON是一种数据格式。{prose}。"))


def text(rng: random.Random) -> Pair:
    """An answer on or as a passage, against a part of it, the passage itself, or none."""
    made = rng.choice(_PASSAGES)(rng)
    part = made[2].split("。")[0] + "，"
    return [_asked(made)], made[2], rng.choice((made[1] or part, _unhelpful(rng)))


def delicate(rng: random.Random) -> Pair:
    """Kind and honest advice on a doubtful request, against going along with it."""
    request, good, bad = rng.choice(lists("preferences")["delicate"])
    who, ta = rng.choice(lists("preferences")["who"])
    asked, chosen, rejected = (side.format(who=who, ta=ta) for side in (request, good, bad))
    return [asked], chosen, rng.choice((rejected, rejected, _unhelpful(rng)))


KINDS: tuple[tuple[int, Callable[[random.Random], Pair]], ...] = (
    (6, wrong_sum),
    (6, off_topic),
    (3, next_turn),
    (5, advice),
    (2, counted),
    (2, number_only),
    (1, as_json),
    (4, text),
    (2, delicate),
)
