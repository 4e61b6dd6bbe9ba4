"""Generated multiple-choice questions of four toy subjects: arithmetic, antonyms, provinces and idioms."""

import random
import re
from collections.abc import Callable
from typing import NamedTuple

from gemma_keras.builtin import sums
from gemma_keras.builtin.tables import table

LETTERS = "ABCD"
_FEW = 150  # rows of a subject that the tables fill without asking anything twice


class Question(NamedTuple):
    """A question that ends with a blank, the right option first, and why it is right."""

    text: str
    options: tuple[str, ...]
    reason: str


# Makers whose answer ends with the number asked for.
WORD_PROBLEMS = (
    sums.giving, sums.shopping, sums.change, sums.travel, sums.discount, sums.sequence, sums.age, sums.two_steps,
)  # fmt: skip
# Words too near each other in meaning for one to be a wrong option where another is the right one.
_NEAR = (
    "大 小 多 少 高 低 长 短 远 近 宽 窄 厚 薄 深 浅 粗 细 轻 重 强 弱 胖 瘦",
    "冷 热 温暖 寒冷 冷淡 热情",
    "黑 白 白天 黑夜 光明 黑暗 冬天 夏天",
    "前进 后退 进步 退步 上升 下降 增加 减少 开始 结束 早 晚",
    "干净 肮脏 整齐 杂乱 清楚 模糊",
    "简单 复杂 容易 困难",
    "高兴 难过 快乐 痛苦",
    "赞成 反对 拒绝 接受 表扬 批评",
    "宽阔 狭窄 集中 分散 团结 分裂",
    "积极 消极 勤劳 懒惰 认真 马虎 热情 冷淡 聪明 愚笨 勇敢 胆小",
    "善良 凶恶 诚实 虚伪 美丽 丑陋 骄傲 谦虚",
    "新 旧 快 慢",
    "全神贯注 聚精会神 一心一意 废寝忘食 三心二意",
    "水滴石穿 持之以恒 愚公移山 日积月累 半途而废",
    "狐假虎威 掩耳盗铃 刻舟求剑 自相矛盾",
    "百发百中 十全十美 名列前茅",
    "万紫千红 五颜六色",
    "助人为乐 雪中送炭",
    "川流不息 人山人海",
)
_GROUPS = tuple(frozenset(group.split()) for group in _NEAR)


def _apart(word: str, other: str) -> bool:
    return not any({word, other} <= group for group in _GROUPS)


def arithmetic(rng: random.Random) -> Question:
    problem, _, solution = rng.choice(WORD_PROBLEMS)(rng)
    answer = int(re.findall(r"\d+", solution)[-1])
    near = [answer + step for step in (-20, -10, -5, -3, -2, -1, 1, 2, 3, 5, 10, 20) if answer + step > 0]
    options = (answer, *rng.sample(near, 3))
    return Question(
        f"{problem}答案是____。", tuple(map(str, options)), solution.replace("\n", "。").replace("。。", "。")
    )


def antonyms(rng: random.Random) -> Question:
    row = rng.choice(table("antonyms"))
    word, right = rng.sample((row["a"], row["b"]), 2)
    if rng.random() < 0.5:
        others = [w for pair in table("antonyms") for w in pair.values() if len(w) == len(right) and w != word]
        wrong = rng.sample([w for w in others if w != right and _apart(w, right) and _apart(w, word)], 3)
        asked = rng.choice((f"“{word}”的反义词是____。", f"下列词语中，与“{word}”意思相反的是____。"))
        return Question(asked, (right, *wrong), f"“{word}”和“{right}”意思相反。")
    pairs = [pair for pair in table("antonyms") if len(pair["a"]) == len(word) and pair != row]
    mixed: list[str] = []
    while len(mixed) < 3:
        first, second = rng.sample(pairs, 2)
        if _apart(first["a"], second["b"]):
            mixed.append(f"{first['a']}——{second['b']}")
    if len(set(mixed)) < 3:
        return antonyms(rng)
    shown = rng.choice(("下列各组词语中，意思相反的一组是____。", "下列哪一组是反义词？____"))
    return Question(shown, (f"{word}——{right}", *mixed), f"“{word}”和“{right}”是一对反义词。")


def provinces(rng: random.Random) -> Question:
    right, *wrong = rng.sample(table("provinces"), 4)
    name, short, capital = right["name"], right["short"], right["capital"]
    seat = "首府" if right["kind"] == "自治区" else "省会"
    asked, shown = rng.choice(
        (
            (f"{name}的{seat}是____。", "{capital}"),
            (f"下列城市中，属于{name}{seat}的是____。", "{capital}"),
            (f"{name}的简称是____。", "{short}"),
            (f"以{capital}为{seat}的是____。", "{name}"),
            (f"简称“{short}”的是____。", "{name}"),
        )
    )
    if rng.random() < 0.3:
        return _matched_provinces([right, *wrong], rng)
    options = tuple(shown.format(**row) for row in (right, *wrong))
    return Question(asked, options, f"{name}的{seat}是{capital}，简称“{short}”。")


def _matched_provinces(rows: list[dict[str, str]], rng: random.Random) -> Question:
    """Which province goes with its capital, or with its short name; the wrong options swap theirs."""
    key, word = rng.choice((("capital", "行政中心"), ("short", "简称")))
    right, *wrong = rows
    swapped = [*wrong[1:], wrong[0]]
    options = (f"{right['name']}——{right[key]}", *(f"{a['name']}——{b[key]}" for a, b in zip(wrong, swapped)))
    return Question(f"下列省区与其{word}对应正确的是____。", options, f"{right['name']}的{word}是{right[key]}。")


def idioms(rng: random.Random) -> Question:
    row = rng.choice(table("idioms"))
    idiom, meaning = row["idiom"], row["meaning"]
    far = [other for other in table("idioms") if other != row and _apart(other["idiom"], idiom)]
    reason = f"“{idiom}”的意思是{meaning}。"
    match rng.randrange(3):
        case 0:
            wrong = [other["meaning"] for other in rng.sample(far, 3)]
            asked = rng.choice((f"成语“{idiom}”的意思是____。", f"对“{idiom}”的解释，正确的是____。"))
            return Question(asked, (meaning, *wrong), reason)
        case 1:
            wrong = [other["idiom"] for other in rng.sample(far, 3)]
            asked = rng.choice((f"意思是“{meaning}”的成语是____。", f"下列成语中，表示“{meaning}”的是____。"))
            return Question(asked, (idiom, *wrong), reason)
    place = rng.randrange(4)
    letters = sorted({letter for other in table("idioms") for letter in other["idiom"]} - set(idiom))
    asked = f"成语“{idiom[:place]}（　）{idiom[place + 1 :]}”中，括号里应填____。".replace("　", "")
    return Question(asked, (idiom[place], *rng.sample(letters, 3)), f"完整的成语是“{idiom}”，{reason}")


SUBJECTS: dict[str, Callable[[random.Random], Question]] = {
    "arithmetic": arithmetic,
    "antonyms": antonyms,
    "provinces": provinces,
    "idioms": idioms,
}


def questions(subject: str, count: int, seed: int) -> list[dict[str, str]]:
    """`count` rows {id, question, A, B, C, D, answer, explanation}, all different.

    Few rows all ask something else; many may ask the same with other wrong options.
    Raises ValueError when the tables cannot make so many.
    """
    rng = random.Random(f"{subject} questions {seed}")
    rows: dict[tuple[str, tuple[str, ...]], dict[str, str]] = {}
    for _ in range(200 * count + 1000):
        if len(rows) == count:
            return list(rows.values())
        text, options, reason = SUBJECTS[subject](rng)
        key = (text, options[:1] if count <= _FEW else tuple(sorted(options)))
        if len(set(options)) < len(LETTERS) or key in rows:
            continue
        order = rng.sample(range(len(LETTERS)), len(LETTERS))
        answer = LETTERS[order.index(0)]
        shown = {letter: options[i] for letter, i in zip(LETTERS, order, strict=True)}
        explanation = f"{reason}所以选{answer}。"
        rows[key] = {"id": str(len(rows)), "question": text, **shown, "answer": answer, "explanation": explanation}
    raise ValueError(f"{count} different questions on {subject} were asked for, but the tables make about {len(rows)}")
