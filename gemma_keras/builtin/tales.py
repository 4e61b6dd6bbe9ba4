"""Generated instructions by kind, most of them for short stories in five steps, after `typed_tables/tales.txt`."""

import random

from gemma_keras.builtin import passages, phrases
from gemma_keras.builtin.lists import Sides, fill, lists, words

_STORIES = 0.85  # of the rows
_STEPS = "起承助转合"
_SHORT = 135  # characters below which a story gets a closing sentence
_OTHERS = (
    ("Dictionary", phrases.idiom),
    ("Summary", passages.summary),
    ("MRC", passages.reading),
    ("SentimentAnalyze", passages.sentiment),
    ("Composition", passages.describe),
)


def row(rng: random.Random) -> dict[str, str]:
    """{"kind", "input": a request or a story's elements, "target": the answer}."""
    if rng.random() < _STORIES:
        return _story(rng)
    kind, make = rng.choice(_OTHERS)
    instruction, given, output = make(rng)
    return {"kind": kind, "input": f"{instruction}\n{given}" if given else instruction, "target": output}


def _story(rng: random.Random) -> dict[str, str]:
    name, wish, hero, helper = rng.choice(lists("tales")["plot"])
    bound: dict[str, Sides] = {}
    told = [fill((rng.choice(words("tales", name + step)),), rng, lists("tales"), bound)[0] for step in _STEPS]
    who, friend = bound[f"{{{hero}}}"][0], bound[f"{{{helper}}}"][0]
    opening = told[0]
    if len("".join(told)) < _SHORT or rng.random() < 0.3:
        told.append(rng.choice(words("tales", "close")).format(hero=who, friend=friend))
    return {"kind": "StoryGeneration", "input": _request(who, wish, friend, opening, rng), "target": "".join(told)}


def _request(who: str, wish: str, helper: str, opening: str, rng: random.Random) -> str:
    return rng.choice(
        (
            f"{who}{wish}",
            f"{who}{wish}，后来得到了{helper}的帮助。",
            f"主人公：{who}；愿望：{wish}；帮手：{helper}",
            f"故事的开头是：{opening}",
            f"一个温暖的小故事，里面有{who}和{helper}，{who}{wish}。",
        )
    )
