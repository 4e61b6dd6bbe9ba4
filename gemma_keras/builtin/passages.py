"""Generated chat rows on passages: sorting, reviews, reading, summaries, stories, descriptions, letters, advice."""

import random
from collections.abc import Callable

from gemma_keras.builtin import documents
from gemma_keras.builtin.sums import Row
from gemma_keras.builtin.tables import expand, grammar, table


def classify(rng: random.Random) -> Row:
    a, b = rng.sample(
        (("动物", "animals"), ("植物", "plants"), ("职业", "jobs"), ("节日", "festivals"), ("国家", "countries")), 2
    )
    groups = {label: [row["name"] for row in rng.sample(table(name), 3)] for label, name in (a, b)}
    mixed = [name for names in groups.values() for name in names]
    rng.shuffle(mixed)
    answer = "\n".join(f"{label}：{'、'.join(n for n in mixed if n in names)}" for label, names in groups.items())
    return f"把下面的词语分成{a[0]}和{b[0]}两类。", "、".join(mixed), answer


def odd_one(rng: random.Random) -> Row:
    kinds = ("水果", "蔬菜", "花", "树")
    kind, other = rng.sample(kinds, 2)
    same = [row["name"] for row in rng.sample([r for r in table("plants") if r["kind"] == kind], 3)]
    odd = rng.choice([r["name"] for r in table("plants") if r["kind"] == other])
    words = [*same, odd]
    rng.shuffle(words)
    return (
        f"下面哪个词和其他词不是一类：{'、'.join(words)}？",
        "",
        f"{odd}。{'、'.join(same)}都是{kind}，而{odd}是{other}。",
    )


def sentiment(rng: random.Random) -> Row:
    good = rng.random() < 0.5
    review = rng.choice(grammar()["good_review" if good else "bad_review"])
    asked = rng.choice(("判断下面这句话的情感是正面还是负面。", "说明下面的评论是好评还是差评。"))
    label = ("正面" if good else "负面") if "正面" in asked else ("好评" if good else "差评")
    reason = "说话的人感到满意" if good else "说话的人感到不满意"
    return asked, rng.choice(("", "我觉得，", "说实话，", "总的来说，")) + review + "。", f"{label}，{reason}。"


def topic(rng: random.Random) -> Row:
    labels = {"体育": "sport_news", "财经": "finance_news", "科技": "tech_news", "教育": "education_news"}
    label = rng.choice(sorted(labels))
    return "这条新闻属于体育、财经、科技还是教育？", rng.choice(grammar()[labels[label]]) + "。", f"{label}。"


def reading(rng: random.Random) -> Row:
    """A question on a generated story that its own sentences answer."""
    bound = documents.cast(rng)
    plot, asked, symbol, answer = rng.choice(
        (
            ("skill", "{HERO}想学会做什么？", "GOAL", "{HERO}想{GOAL}。"),
            ("find", "{HERO}捡到了什么？", "LOST", "{HERO}捡到了{LOST}。"),
            ("grow", "{HERO}种了什么？", "GROW", "{HERO}种了{GROW}。"),
            ("trip", "{HERO}和谁一起去？去做什么？", "TRIP", "{HERO}和{FRIEND}一起去{TRIP}。"),
        )
    )
    slot = {"GOAL": "goal_skill", "LOST": "lost_thing", "GROW": "grow_thing", "TRIP": "trip_place"}[symbol]
    bound[symbol] = bound[slot] = rng.choice(grammar()[slot])
    text = documents.story(rng, bound, plot)
    return f"阅读短文，回答问题：{expand(asked, rng, bound)}", text, expand(answer, rng, bound)


def summary(rng: random.Random) -> Row:
    bound = documents.cast(rng)
    plot, slot, answer = rng.choice(
        (
            ("skill", "goal_skill", "{HERO}在别人的鼓励下坚持练习，终于{goal_skill}。"),
            ("find", "lost_thing", "{HERO}捡到{lost_thing}，想办法还给了失主。"),
            ("grow", "grow_thing", "{HERO}种了{grow_thing}，在{ELDER}的指点下耐心照顾，得到了收获。"),
            ("trip", "trip_place", "{HERO}和{FRIEND}去{trip_place}，虽然遇到麻烦，还是玩得很开心。"),
        )
    )
    bound[slot] = rng.choice(grammar()[slot])
    text = documents.story(rng, bound, plot)
    return rng.choice(("用一句话概括下面的内容。", "总结下面短文的大意。")), text, expand(answer, rng, bound)


def extract(rng: random.Random) -> Row:
    bound = documents.cast(rng)
    day, when = rng.choice(grammar()["day"][:6]), rng.choice(grammar()["when"][:6])
    place = rng.choice(grammar()["PLACE"])
    deed = rng.choice(("种树", "画画", "捡垃圾", "打羽毛球", "放风筝", "看书", "拍照", "跑步"))
    text = f"{day}{when}，{bound['ELDER']}带着{bound['HERO']}在{place}{deed}。"
    people = f"{bound['ELDER']}和{bound['HERO']}"
    return "从文本中提取时间、地点和人物。", text, f"时间：{day}{when}\n地点：{place}\n人物：{people}"


def write_story(rng: random.Random) -> Row:
    bound = documents.cast(rng)
    plot, slot, asked = rng.choice(
        (
            ("skill", "goal_skill", "写一个短故事，讲{HERO}怎样{goal_skill}。"),
            ("find", "lost_thing", "请写一个故事：{HERO}捡到了{lost_thing}。"),
            ("grow", "grow_thing", "请编一个小故事，内容是{HERO}种了{grow_thing}。"),
            ("trip", "trip_place", "写一写{HERO}和{FRIEND}去{trip_place}的经过。"),
            ("care", "care_thing", "写一个{HERO}帮助{ELDER}{care_thing}的故事。"),
        )
    )
    bound[slot] = rng.choice(grammar()[slot])
    return expand(asked, rng, bound), "", documents.story(rng, bound, plot)


def describe(rng: random.Random) -> Row:
    season = rng.choice(("春天", "夏天", "秋天", "冬天"))
    key = {"春天": "spring_view", "夏天": "summer_view", "秋天": "autumn_view", "冬天": "winter_view"}[season]
    place = rng.choice(grammar()["PLACE"])
    views = rng.sample(grammar()[key], rng.randint(2, 3)) + rng.sample(grammar()["place_view"], 1)
    asked = rng.choice(
        (f"请描写{season}的{place}。", f"写一段话，描写{season}的{place}。", f"{season}的{place}是什么样子？")
    )
    return (
        asked,
        "",
        expand(f"{season}的{place}很美。" + "。".join(views) + rng.choice(("。", "。{feeling}。")), rng, {}),
    )


def describe_home(rng: random.Random) -> Row:
    views = rng.sample(grammar()["family_view"], 3)
    return (
        rng.choice(("描写一个家庭的晚上。", "写一段话，写写一家人在家的样子。")),
        "",
        expand("。".join(views) + "。{family_talk}。{family_end}。", rng, {}),
    )


def thanks(rng: random.Random) -> Row:
    """A short letter of thanks."""
    who = rng.choice(("小林", "小雨", "陈晨", "李华", "小军", "玲玲", "阿明", "思思"))
    me = rng.choice(("王强", "小丽", "刘洋", "晓燕", "志远"))
    deed = rng.choice(grammar()["thanks_for"])
    asked = rng.choice((f"请写一封短信，感谢{who}{deed}。", f"{who}{deed}，请帮我写几句感谢的话。"))
    wish = rng.choice([wish for wish in grammar()["wish"] if "您" not in wish])
    return (
        asked,
        "",
        expand(f"{who}：\n你好！谢谢你{deed}。{{thanks_how}}。{{thanks_next}}。{wish}！\n你的朋友：{me}", rng, {}),
    )


def blessing(rng: random.Random) -> Row:
    """A few good wishes."""
    day = rng.choice(("新年", "生日", "中秋节", "教师节", "元旦"))
    who = rng.choice(("朋友", "老师", "同学", "奶奶", "邻居"))
    if day == "教师节":
        who = "老师"
    polite = who in ("老师", "奶奶", "邻居")
    wishes = [wish for wish in grammar()["wish"] if ("您" in wish) == polite or "我们" in wish]
    chosen = rng.sample(wishes, 2)
    return f"{day}到了，给{who}写两句祝福。", "", f"{day}快乐！{'，'.join(chosen)}。"


def tips(rng: random.Random) -> Row:
    row = rng.choice(table("tips"))
    count = rng.randint(3, 5)
    asked = rng.choice(
        (
            f"怎样{row['topic']}？",
            f"请给出{'零一二三四五'[count]}条{row['topic']}的建议。",
            f"{row['topic']}有哪些好办法？",
            f"列出{'零一二三四五'[count]}个{row['topic']}的方法。",
        )
    )
    chosen = rng.sample(row["tips"].split(";"), count)
    if rng.random() < 0.6:
        return asked, "", "\n".join(f"{i}. {tip}。" for i, tip in enumerate(chosen, 1))
    return asked, "", f"可以这样做：{'；'.join(chosen)}。"


KINDS: tuple[tuple[int, Callable[[random.Random], Row]], ...] = (
    (3, classify),
    (2, odd_one),
    (1, sentiment),
    (1, topic),
    (4, reading),
    (5, summary),
    (2, extract),
    (8, write_story),
    (4, describe),
    (1, describe_home),
    (2, thanks),
    (1, blessing),
    (14, tips),
)
