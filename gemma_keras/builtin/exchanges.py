"""Generated questions with a short and a helpful answer: everyday troubles, how-tos, comparisons, jobs, concepts."""

import random
from collections.abc import Callable

from gemma_keras.builtin.lists import lists, words
from gemma_keras.builtin.tables import table

Exchange = tuple[str, str, str]  # question, short answer, full answer

_ORDINALS = ("首先", "其次", "另外", "最后")


def row(rng: random.Random) -> dict[str, str | list[str]]:
    """{"question", "human_answers": [short], "chatgpt_answers": [full]}."""
    weights = [weight for weight, _ in KINDS]
    question, short, full = rng.choices([make for _, make in KINDS], weights)[0](rng)
    return {"question": question, "human_answers": [short], "chatgpt_answers": [full]}


def _steps(items: list[str], rng: random.Random) -> str:
    """Items as a numbered list or as running text."""
    if rng.random() < 0.5:
        return "\n" + "\n".join(f"{i}. {item}。" for i, item in enumerate(items, 1)) + "\n"
    links = [*_ORDINALS[: len(items) - 1], _ORDINALS[-1]]
    return "；".join(f"{link}，{item}" for link, item in zip(links, items, strict=True)) + "。"


def trouble(rng: random.Random) -> Exchange:
    symptom, short, topic = rng.choice(lists("exchanges")["trouble"])
    cause, other = rng.sample(words("exchanges", f"{topic}因"), 2)
    known = words("exchanges", f"{topic}法")
    remedies = sorted(rng.sample(known, rng.randint(3, 4)), key=known.index)  # what comes first is written first
    reasons = rng.choice(words("exchanges", "reasons")).format(cause=cause, other=other)
    warning = words("exchanges", f"{topic}警")[0] + "。"
    closing = rng.choice((warning, warning, rng.choice(words("exchanges", "closing")) + warning))
    question = rng.choice(("", rng.choice(words("exchanges", "asker")))) + symptom
    full = rng.choice(words("exchanges", "opening")) + reasons + "可以这样做：" + _steps(remedies, rng) + closing
    return f"{question}，{rng.choice(words('exchanges', 'ask'))}", short, full


def how_to(rng: random.Random) -> Exchange:
    topic, tips = rng.choice(table("tips")).values()
    chosen = rng.sample(tips.split(";"), rng.randint(4, 5))
    who = rng.choice(("", "请问", "我一直做得不好，", "想请教一下，"))
    question = f"{who}怎样才能{topic}？" if rng.random() < 0.5 else f"{who}{topic}有什么窍门？"
    opening = rng.choice((f"想要{topic}，可以从下面几点做起：", f"{topic}，要从小事做起。", "这里有几个简单的办法。"))
    items = "\n".join(f"{i}. {tip}。" for i, tip in enumerate(chosen[1:], 1))
    return (
        question,
        f"{chosen[0]}，{chosen[1]}。",
        f"{opening}\n{items}\n{rng.choice(words('exchanges', 'closing')[1:])}",
    )


def difference(rng: random.Random) -> Exchange:
    a, b = rng.sample(table("animals"), 2)
    same = (
        f"它们都属于{a['class']}，但有不少差别。"
        if a["class"] == b["class"]
        else f"最根本的区别在于：{a['name']}属于{a['class']}，{b['name']}属于{b['class']}。"
    )
    homes = f"{a['name']}生活在{a['home']}，{b['name']}生活在{b['home']}。"
    food = f"吃的东西也不一样，{a['name']}主要吃{a['food']}，{b['name']}主要吃{b['food']}。"
    traits = f"从特点来看，{a['name']}{a['trait']}；{b['name']}{b['trait']}。"
    parts = rng.sample([homes if a["home"] != b["home"] else "", food if a["food"] != b["food"] else "", traits], 3)
    question = rng.choice(
        (f"{a['name']}和{b['name']}有什么区别？", f"孩子问我{a['name']}跟{b['name']}哪里不一样，该怎么讲？")
    )
    return question, f"{a['name']}{a['trait']}；{b['name']}{b['trait']}。", same + "".join(parts)


def plant_care(rng: random.Random) -> Exchange:
    rows = [plant for plant in table("plants") if plant["kind"] in ("花", "树", "蔬菜")]
    plant = rng.choice(rows)
    name = plant["name"]
    tips = next(tips["tips"] for tips in table("tips") if tips["topic"] == "养好花草").split(";")
    chosen = rng.sample([tip for tip in tips if "盆" not in tip and "喜欢" not in tip], 3)
    kind = {"花": "观赏植物", "树": "树木"}.get(plant["kind"], "蔬菜")
    question = rng.choice((f"我想在院子里种{name}，要注意什么？", f"第一次种{name}，怎样才能种好？"))
    full = (
        f"{name}是常见的{kind}，{plant['habit']}。它的样子很好认：{plant['look']}。种的时候可以注意这几点：{_steps(chosen, rng)}"
        f"照顾得好，{rng.choice(('自然会有收获', '它会长得很精神', '你会看到它一天天的变化'))}。"
    )
    return question, f"它{plant['habit']}，{chosen[0]}就行。", full


def job(rng: random.Random) -> Exchange:
    work = rng.choice(table("jobs"))
    name = work["name"]
    advice = rng.sample(
        (
            "先向做这一行的人请教，了解真实的一天是怎样的",
            "打好基础，把学校里相关的课程学扎实",
            "利用假期去实习，亲自试一试",
            "多读这方面的书，关注行业的新变化",
            "锻炼身体，因为长期的工作需要充沛的精力",
            "学会和不同的人沟通合作",
            "查一查这一行要求哪些证书和学历，早作打算",
        ),
        rng.randint(3, 4),
    )
    asker = rng.choice(("我的梦想是当{0}", "女儿说长大要当{0}", "我马上毕业，想做{0}", "我想转行当{0}"))
    question = asker.format(name) + rng.choice(("，需要做哪些准备？", "，应该从哪里入手？", "，有什么建议吗？"))
    full = (
        f"{name}主要在{work['place']}工作，日常的任务是{work['task']}。做好这份工作，离不开{work['virtue']}。"
        f"建议这样准备：{_steps(advice, rng)}有了目标，再一步一步去做，就不会觉得太远。"
    )
    return question, f"这一行要靠{work['virtue']}，有机会先去实习看看。", full


def concept(rng: random.Random) -> Exchange:
    thing = rng.choice(table("concepts"))
    name = thing["name"]
    question = rng.choice(
        (f"能不能用大白话讲讲{name}？", f"上课听到{name}，没有听懂，谁能解释一下？", f"{name}到底是什么意思？")
    )
    steps = (
        "想进一步了解，可以在生活中找一个例子，再用自己的话讲给别人听。",
        "要是还不明白，可以画一张图，把其中的关系标出来。",
        "理解了它的意思，再去看书上的定义，就不会觉得抽象了。",
        "可以找一本图文并茂的科普书看看，印象会更深。",
    )
    return question, thing["explanation"].partition("，")[0] + "。", f"{thing['explanation']}。{rng.choice(steps)}"


def festival(rng: random.Random) -> Exchange:
    day = rng.choice(table("festivals"))
    name, meaning = day["name"], day["meaning"]
    who = rng.choice(("外国朋友问我", "孩子想知道", "班里要办活动，", "我在写一篇介绍，"))
    question = f"{who}{name}是怎么过的，怎么说比较好？"
    extra = rng.sample(
        (
            "如果要讲给孩子听，可以先讲一个和节日有关的故事",
            "准备几张照片，会让介绍更生动",
            "可以一起动手做一样和节日有关的东西",
            "各地的风俗不完全一样，也可以说说自己家乡的做法",
        ),
        2,
    )
    full = (
        f"可以从时间、活动和意义三个方面来说。{name}在{day['date']}。这一天，人们会{day['customs']}。"
        f"它的意义是{meaning}。{'；'.join(extra)}。"
    )
    return question, f"{day['date']}，大家{day['customs']}。", full


KINDS: tuple[tuple[int, Callable[[random.Random], Exchange]], ...] = (
    (10, trouble),
    (4, how_to),
    (3, difference),
    (2, plant_care),
    (3, job),
    (1, concept),
    (1, festival),
)
