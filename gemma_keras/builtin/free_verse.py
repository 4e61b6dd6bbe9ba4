"""Generated modern poems: an opening and images of one setting, a closing of one theme, after `typed_tables/`."""

import random

from gemma_keras.builtin.lists import Sides, lists, words


def row(rng: random.Random) -> dict[str, str]:
    """{"prompt": a request that names the images, "response": a poem of 6 to 14 lines}."""
    setting = rng.choice(words("free_verse", "settings"))
    theme, feeling = rng.choice(lists("free_verse")["themes"])
    images = _images(setting, rng.choice((2, 3, 3)), rng)
    opening = rng.choice(words("free_verse", f"{setting}开头"))
    closing = rng.choice(words("free_verse", theme))
    stanzas = [opening, *(text for _, text in images), closing]
    if rng.random() < 0.4:  # loose stanzas, else one block of lines
        stanzas[1:-1] = ["/".join(stanzas[1:-1])]
        poem = "\n\n".join(stanzas)
    else:
        poem = "\n".join(stanzas)
    return {
        "prompt": _request(setting, theme, feeling, [name for name, _ in images], rng),
        "response": poem.replace("/", "\n"),
    }


def _images(setting: str, count: int, rng: random.Random) -> list[Sides]:
    """Different images of a setting, each with one of its wordings."""
    names = list(dict.fromkeys(words("free_verse", setting)))
    chosen = rng.sample(names, count)
    return [rng.choice([sides for sides in lists("free_verse")[setting] if sides[0] == name]) for name in chosen]


def _request(setting: str, theme: str, feeling: str, images: list[str], rng: random.Random) -> str:
    named, quoted = "、".join(images), "".join(f"“{name}”" for name in images)
    return rng.choice(
        (
            f"请用{quoted}这几个意象写一首现代诗，表达{feeling}。",
            f"写一首关于{theme}的现代诗，场景是{setting}，诗里要出现{named}。",
            f"以{theme}为主题写一首自由诗，用到这些意象：{named}。",
            f"我想要一首写{setting}的小诗，主题是{theme}，请把{named}写进去。",
            f"请写一首不押韵的短诗，从{named}写到{theme}。",
            f"用{named}写一首诗，让人读出{feeling}。",
        )
    )
