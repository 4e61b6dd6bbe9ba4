"""Generated plain text for pretraining: short narratives, articles on things in the tables, scenes and advice."""

import random
from collections.abc import Callable

from gemma_keras.builtin import entries
from gemma_keras.builtin.tables import expand, grammar, table

_NAMES = tuple(
    (name, pronoun)
    for pronoun, names in (
        ("他", "小明 小刚 小军 李明 王强 阿福 大伟 小杰 陈刚 志远 小林 海生"),
        ("她", "小红 小丽 小雪 王芳 李静 阿兰 小敏 晓燕 陈晨 小雨 玉兰 思思"),
    )
    for name in names.split()
)
_ELDERS = tuple(
    (name, pronoun)
    for pronoun, names in (
        ("他", "爷爷 外公 张大爷 李叔叔 王老师 刘师傅 老校长 陈伯伯"),
        ("她", "奶奶 外婆 王奶奶 赵阿姨 李老师 张大妈 孙奶奶 林阿姨"),
    )
    for name in names.split()
)
_NUMERALS = "零一二三四五六七八九十"


def cast(rng: random.Random) -> dict[str, str]:
    """Names and pronouns of a text: HERO and TA, FRIEND, ELDER and ELDER_TA."""
    (hero, pronoun), (friend, _) = rng.sample(_NAMES, 2)
    elder, elder_pronoun = rng.choice(_ELDERS)
    return {"HERO": hero, "TA": pronoun, "FRIEND": friend, "ELDER": elder, "ELDER_TA": elder_pronoun}


def _plot(opening: str, *slots: str) -> tuple[str, ...]:
    return (opening, *("{" + slot + "}。" for slot in slots))


PLOTS = {
    "skill": _plot(
        "{day}，{HERO}下决心要{goal_skill}。", "skill_start", "skill_help", "skill_practice", "skill_end", "skill_moral"
    ),
    "find": _plot(
        "{day}{when}，{HERO}{find_where}捡到了{lost_thing}。", "find_think", "find_act", "find_end", "find_moral"
    ),
    "grow": _plot(
        "春天到了，{HERO}想种{grow_thing}。", "grow_start", "grow_wait", "grow_tip", "grow_end", "grow_moral"
    ),
    "trip": _plot(
        "{day}，{HERO}和{FRIEND}一起去{trip_place}。",
        "weather",
        "trip_way",
        "trip_trouble",
        "trip_end",
        "trip_moral",
    ),
    "care": _plot("{ELDER}住在{HERO}家的附近。", "care_start", "care_act", "care_thanks", "care_end"),
}


def story(rng: random.Random, bound: dict[str, str], plot: str = "") -> str:
    """A narrative of five to seven sentences; `bound` is a cast and keeps what was drawn."""
    sentences = [expand(part, rng, bound) for part in PLOTS[plot or rng.choice(sorted(PLOTS))]]
    return tidy("".join(sentences))


def tidy(text: str) -> str:
    """Drop the full stop that a slot adds after a sentence that ends by itself."""
    for end in ("。”", "！", "？"):
        text = text.replace(end + "。", end)
    return text.replace("。。", "。")


def scene(rng: random.Random) -> str:
    """A place in a season: four to seven sentences."""
    bound: dict[str, str] = {}
    season = expand("{SEASON}", rng, bound)
    key = {"春天": "spring_view", "夏天": "summer_view", "秋天": "autumn_view", "冬天": "winter_view"}[season]
    views = rng.sample(grammar()[key], rng.randint(2, 4))
    places = rng.sample(grammar()["place_view"], rng.randint(1, 2))
    opening = rng.choice(
        (
            "{SEASON}的{PLACE}很美。",
            "{SEASON}来了，{PLACE}换了一个样子。",
            "{SEASON}的一天，我来到{PLACE}。",
            "我最喜欢{SEASON}的{PLACE}。",
        )
    )
    return expand(opening + "。".join(views + places) + "。{feeling}。", rng, bound)


def worker(rng: random.Random) -> str:
    """A person at work."""
    job, bound = rng.choice(table("jobs")), cast(rng)
    task = rng.choice(job["task"].split("、"))
    opening = rng.choice(
        (
            f"{{HERO}}是一名{job['name']}。",
            f"{{HERO}}在{job['place']}工作，是一名{job['name']}。",
            f"在{job['place']}，大家都认识{job['name']}{{HERO}}。",
        )
    )
    duty = f"{{TA}}每天要{job['task']}。" if "，" in task else f"{{TA}}的工作是{job['task']}。"
    rest = "{work_start}。" + duty + "{work_hard}。{work_love}。{work_case}。"
    virtue = f"这份工作需要{job['virtue']}。"
    return tidy(expand(opening + rest + rng.choice((virtue, "")) + "{work_end}。", rng, bound))


def knowledge(rng: random.Random) -> str:
    """Two paragraphs' worth of facts: one long entry, or three short ones of a kind."""
    kind = rng.choice(sorted(entries.ABOUT))
    count = 1 if kind in entries.LONG else 3
    return "".join(entries.ABOUT[kind](row, rng) for row in rng.sample(table(kind), count))


def advice(rng: random.Random) -> str:
    """Three or four tips as running text."""
    row = rng.choice(table("tips"))
    tips = rng.sample(row["tips"].split(";"), rng.randint(3, 4))
    links = rng.choice((("首先", "其次", "再次", "最后"), ("第一", "第二", "第三", "第四")))
    steps = "；".join(f"{link}，{tip}" for link, tip in zip(links, tips, strict=False))
    opening = rng.choice(
        (
            f"怎样{row['topic']}呢？",
            f"说到{row['topic']}，很多人都有自己的办法。",
            f"{row['topic']}并不难，关键在于坚持。",
            f"王老师常对学生讲{row['topic']}的方法。",
        )
    )
    end = ("做到这几点，时间长了就能看到效果。", "这些都是小事，却很有用。", "只要坚持，一定会有收获。", "")
    return f"{opening}{steps}。{rng.choice(end)}"


def counting(rng: random.Random) -> str:
    """Sums told in words."""
    hero, noun = cast(rng)["HERO"], rng.choice(("苹果", "铅笔", "贴纸", "橘子", "书", "糖", "玻璃球"))
    unit = {"铅笔": "支", "贴纸": "张", "书": "本", "糖": "块"}.get(noun, "个")
    have, more = rng.randint(3, 40), rng.randint(2, 30)
    gone = rng.randint(1, have + more - 1)
    return (
        f"{hero}有{have}{unit}{noun}，又得到{more}{unit}，一共有{have}＋{more}＝{have + more}{unit}。"
        f"后来{hero}送给别人{gone}{unit}，还剩{have + more}－{gone}＝{have + more - gone}{unit}。"
    )


KINDS: tuple[tuple[int, Callable[[random.Random], str]], ...] = (
    (8, lambda rng: story(rng, cast(rng))),
    (2, scene),
    (2, worker),
    (5, knowledge),
    (3, advice),
    (1, counting),
)


def document(rng: random.Random) -> str:
    """One line of plain text of a kind drawn by weight."""
    weights = [weight for weight, _ in KINDS]
    return rng.choices([make for _, make in KINDS], weights)[0](rng)


def article(rng: random.Random) -> tuple[str, str]:
    """An encyclopaedic article: its title, and a body of paragraphs about related entries of one table."""
    kind = rng.choice(entries.LONG)
    title = {"animals": "动物", "plants": "植物", "jobs": "职业", "festivals": "节日"}[kind]
    rows = rng.sample(table(kind), rng.randint(3, 5))
    paragraphs = [entries.ABOUT[kind](row, rng) for row in rows]
    names = "、".join(row["name"] for row in rows)
    opening = (
        f"这里介绍{_NUMERALS[len(rows)]}种{title}：{names}。" if kind != "festivals" else f"这里介绍几个节日：{names}。"
    )
    return f"{rows[0]['name']}与其他{title}", "\n".join([opening, *paragraphs])
