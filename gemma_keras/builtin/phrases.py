"""Generated chat rows on words and facts: idioms, classifiers, translation, capitals, things, concepts, poems, code."""

import random
from collections.abc import Callable

from gemma_keras.builtin import documents, entries
from gemma_keras.builtin.sums import Row
from gemma_keras.builtin.tables import expand, table


def idiom(rng: random.Random) -> Row:
    row = rng.choice(table("idioms"))
    name, meaning = row["idiom"], row["meaning"]
    question = rng.choice(
        (f"请解释成语“{name}”。", f"“{name}”是什么意思？", f"成语“{name}”的含义是什么？", f"我不懂“{name}”，请讲一讲。")
    )
    return question, "", rng.choice((f"“{name}”的意思是{meaning}。", f"“{name}”是一个成语，意思是：{meaning}。"))


def find_idiom(rng: random.Random) -> Row:
    row = rng.choice(table("idioms"))
    return f"哪个成语的意思是“{row['meaning']}”？", "", f"这个成语是“{row['idiom']}”。"


def opposite(rng: random.Random) -> Row:
    row = rng.choice(table("antonyms"))
    a, b = (row["a"], row["b"]) if rng.random() < 0.5 else (row["b"], row["a"])
    return rng.choice((f"“{a}”的反义词是什么？", f"请写出“{a}”的反义词。")), "", f"“{a}”的反义词是“{b}”。"


def similar(rng: random.Random) -> Row:
    row = rng.choice(table("synonyms"))
    a, b = (row["a"], row["b"]) if rng.random() < 0.5 else (row["b"], row["a"])
    return rng.choice((f"请给“{a}”找一个近义词。", f"“{a}”的近义词是什么？")), "", f"“{a}”的近义词是“{b}”。"


def classifier(rng: random.Random) -> Row:
    rows = rng.sample(table("classifiers"), rng.randint(2, 4))
    blanks = "，".join(f"一（）{row['noun']}" for row in rows)
    filled = "，".join(f"一{row['classifier']}{row['noun']}" for row in rows)
    return rng.choice(("请填上合适的量词：", "在括号里填上量词：")) + blanks + "。", "", filled + "。"


def change_sentence(rng: random.Random) -> Row:
    who, verb, thing, end = rng.choice(table("events")).values()
    plain, done = f"{who}把{thing}{verb}{end}。", f"{thing}被{who}{verb}{end}。"
    if rng.random() < 0.5:
        return rng.choice(("把下面的句子改成“被”字句：", "请把句子改成被动句：")) + plain, "", done
    return rng.choice(("把下面的句子改成“把”字句：", "请用“把”字改写句子：")) + done, "", plain


def question_form(rng: random.Random) -> Row:
    sentence = rng.choice([row["zh"] for row in table("sentences") if not row["zh"].startswith(("请", "谢谢", "我"))])
    return f"把下面这句话变成疑问句：{sentence}。", "", f"{sentence}吗？"


def word_translation(rng: random.Random) -> Row:
    rows = rng.sample(table("words"), rng.randint(2, 4))
    if rng.random() < 0.5:
        return (
            "将下面的词语翻译成英语。",
            "、".join(r["zh"] for r in rows),
            "\n".join(f"{r['zh']}：{r['en']}" for r in rows),
        )
    return (
        "将下面的单词翻译成中文。",
        ", ".join(r["en"] for r in rows),
        "\n".join(f"{r['en']}：{r['zh']}" for r in rows),
    )


def sentence_translation(rng: random.Random) -> Row:
    zh, en = rng.choice(table("sentences")).values()
    if rng.random() < 0.5:
        return rng.choice(("将下面的句子翻译成英语。", "请把这句话译成英文。")), zh + "。", en + "."
    return rng.choice(("将下面的句子翻译成中文。", "请把这句话译成汉语。")), en + ".", zh + "。"


def capital(rng: random.Random) -> Row:
    if rng.random() < 0.5:
        row = rng.choice(table("provinces"))
        seat = "首府" if row["kind"] == "自治区" else "省会"
        return rng.choice(
            (
                (f"{row['name']}的{seat}是哪里？", "", f"{row['name']}的{seat}是{row['capital']}。"),
                (f"{row['name']}的简称是什么？", "", f"{row['name']}的简称是“{row['short']}”。"),
                (f"{row['capital']}是哪个{row['kind']}的{seat}？", "", f"{row['capital']}是{row['name']}的{seat}。"),
            )
        )
    row = rng.choice(table("countries"))
    return rng.choice(
        (
            (f"{row['name']}的首都是哪里？", "", f"{row['name']}的首都是{row['capital']}。"),
            (f"{row['capital']}是哪个国家的首都？", "", f"{row['capital']}是{row['name']}的首都。"),
            (f"{row['name']}在哪个洲？", "", f"{row['name']}在{row['continent']}，首都是{row['capital']}。"),
        )
    )


def planet(rng: random.Random) -> Row:
    row = rng.choice(table("planets"))
    return rng.choice(
        (
            (f"介绍一下{row['name']}。", "", entries.about_planet(row, rng)),
            (f"按离太阳由近到远的顺序，{row['name']}排第几？", "", f"{row['name']}排在第{row['order']}位。"),
        )
    )


def introduce(rng: random.Random) -> Row:
    kind = rng.choice(("animals", "plants", "jobs", "festivals"))
    row = rng.choice(table(kind))
    name = row["name"]
    question = rng.choice(
        (f"请介绍一下{name}。", f"你能说说{name}吗？", f"写一段话介绍{name}。", f"关于{name}，你知道些什么？")
    )
    return question, "", entries.ABOUT[kind](row, rng)


def about_one(rng: random.Random) -> Row:
    """A question on one column of a table."""
    animal, plant, job, festival = (rng.choice(table(name)) for name in ("animals", "plants", "jobs", "festivals"))
    return rng.choice(
        (
            (f"{animal['name']}主要吃什么？", "", f"{animal['name']}主要吃{animal['food']}。"),
            (f"{animal['name']}生活在哪里？", "", f"{animal['name']}生活在{animal['home']}。"),
            (f"{animal['name']}属于哪一类动物？", "", f"{animal['name']}属于{animal['class']}。"),
            (f"{animal['name']}有什么特点？", "", f"{animal['name']}{animal['trait']}，能{animal['skill']}。"),
            (f"{plant['name']}是什么样子的？", "", f"{plant['name']}是一种{plant['kind']}，{plant['look']}。"),
            (f"{job['name']}的工作是什么？", "", f"{job['name']}的工作是{job['task']}。"),
            (
                f"做一名{job['name']}需要什么？",
                "",
                f"做一名{job['name']}需要{job['virtue']}，因为每天要{job['task']}。",
            ),
            (f"{festival['name']}是哪一天？", "", f"{festival['name']}在{festival['date']}。"),
            (f"{festival['name']}有哪些习俗或活动？", "", f"{festival['name']}这天，人们会{festival['customs']}。"),
        )
    )


def concept(rng: random.Random) -> Row:
    row = rng.choice(table("concepts"))
    question = rng.choice(
        (f"什么是{row['name']}？", f"请用简单的话解释{row['name']}。", f"给小学生讲讲{row['name']}。")
    )
    return question, "", row["explanation"] + "。"


def poem(rng: random.Random) -> Row:
    row = rng.choice(table("poems"))
    first, second = row["line"].split("，")
    return rng.choice(
        (
            (
                f"“{row['line']}”的作者是谁？",
                "",
                f"作者是{row['dynasty']}代诗人{row['author']}，诗句出自《{row['title']}》。",
            ),
            (f"“{first}”的下一句是什么？", "", f"下一句是“{second}”，出自{row['author']}的《{row['title']}》。"),
        )
    )


def count_characters(rng: random.Random) -> Row:
    sentence = rng.choice(table("sentences"))["zh"]
    return (
        f"“{sentence}”这句话一共有几个字？",
        "",
        f"一个字一个字地数：{'、'.join(sentence)}，一共有{len(sentence)}个字。",
    )


def backwards(rng: random.Random) -> Row:
    word = rng.choice(table("idioms"))["idiom"]
    return f"把“{word}”四个字倒过来写。", "", f"倒过来是“{word[::-1]}”。"


def use_words(rng: random.Random) -> Row:
    """A sentence from three given words."""
    person = documents.cast(rng)["HERO"]
    place, thing, deed = rng.choice(table("keywords")).values()
    sentence = expand(f"{{day}}{{when}}，{person}{deed}。", rng, {})
    return "根据给出的关键词写一句话。", f"{person}、{place}、{thing}", sentence


def code(rng: random.Random) -> Row:
    a = rng.randint(2, 12)
    b = a + rng.randint(3, 20)
    return rng.choice(
        (
            (f"用Python打印{a}到{b}的整数。", "", f"for i in range({a}, {b + 1}):\n    print(i)"),
            (
                f"用Python计算{a}到{b}所有整数的和。",
                "",
                f"total = sum(range({a}, {b + 1}))\nprint(total)\n\n结果是{sum(range(a, b + 1))}。",
            ),
            (
                f"写一个Python函数，把一个数乘以{a}。",
                "",
                f"def multiply(n):\n    return n * {a}\n\n例如multiply({b})返回{a * b}。",
            ),
            (f"写一个Python函数，判断一个整数能不能被{a}整除。", "", f"def divisible(n):\n    return n % {a} == 0"),
            (f"Python里{b} % {a}的结果是多少？", "", f"%求余数，{b}除以{a}余{b % a}，所以结果是{b % a}。"),
            (f"Python里{b} // {a}的结果是多少？", "", f"//是整除，只保留商的整数部分，所以结果是{b // a}。"),
        )
    )


KINDS: tuple[tuple[int, Callable[[random.Random], Row]], ...] = (
    (3, idiom),
    (1, find_idiom),
    (2, opposite),
    (2, similar),
    (3, classifier),
    (1, change_sentence),
    (1, question_form),
    (3, word_translation),
    (1, sentence_translation),
    (4, capital),
    (1, planet),
    (8, introduce),
    (7, about_one),
    (4, concept),
    (1, poem),
    (1, count_characters),
    (1, backwards),
    (3, use_words),
    (2, code),
)
