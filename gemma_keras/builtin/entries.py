"""What a paragraph says about one row of a table: an animal, a province, an idiom, ..."""

import random
from collections.abc import Callable


def about_animal(row: dict[str, str], rng: random.Random) -> str:
    name, home_, food = row["name"], row["home"], row["food"]
    middle = [
        rng.choice((f"它的样子很有特点：{row['trait']}。", f"{name}{row['trait']}。")),
        rng.choice((f"它主要吃{food}。", f"{name}的食物主要是{food}。", f"说到吃，{name}喜欢{food}。")),
        rng.choice((f"{name}能{row['skill']}。", f"{name}的本领是{row['skill']}。", f"它会{row['skill']}。")),
    ]
    rng.shuffle(middle)
    start = rng.choice(
        (
            f"{name}属于{row['class']}，生活在{home_}。",
            f"{name}是一种{row['class']}，常见于{home_}。",
            f"在{home_}，可以见到{name}，它属于{row['class']}。",
        )
    )
    end = rng.choice(
        (
            "我们应该爱护动物，保护它们的家。",
            f"人们常常在书里和电影里看到{name}。",
            f"很多孩子都喜欢{name}。",
            f"了解{name}的习性，可以帮助我们更好地保护它。",
            "",
        )
    )
    return start + "".join(middle) + end


def about_plant(row: dict[str, str], rng: random.Random) -> str:
    name, kind = row["name"], row["kind"]
    season = row["season"]
    middle = [
        rng.choice((f"{name}的样子是这样的：{row['look']}。", f"它{row['look']}。")),
        rng.choice((f"它可以{row['use']}。", f"说到用处，可以{row['use']}。"))
        if kind in ("水果", "蔬菜")
        else rng.choice(
            (f"它的用途是{row['use']}。", f"人们用它{row['use']}。") if kind == "树" else (f"它可以{row['use']}。",)
        ),
        rng.choice((f"{name}{row['habit']}。", f"它{row['habit']}。")),
    ]
    when = {
        "水果": f"{name}成熟的季节是{season}。",
        "蔬菜": f"吃{name}最好的季节是{season}。",
        "花": f"{name}开花的季节是{season}。",
    }
    middle.append(when.get(kind, f"说到{name}的季节，可以说是{season}。"))
    rng.shuffle(middle)
    kind_name = {"花": "花卉", "树": "树木"}.get(kind, kind)
    return f"{name}是一种常见的{kind_name}。" + "".join(middle)


def about_job(row: dict[str, str], rng: random.Random) -> str:
    name = row["name"]
    start = rng.choice((f"{name}是一种重要的职业。", f"{name}是社会不可缺少的工作者。"))
    middle = [
        f"{name}常在{row['place']}工作。",
        rng.choice((f"主要的工作是{row['task']}。", f"{name}每天要{row['task']}。")),
        rng.choice((f"做好这份工作，需要{row['virtue']}。", f"一名好的{name}离不开{row['virtue']}。")),
    ]
    return start + "".join(middle) + rng.choice(("每一份认真的工作都值得尊重。", f"人们常对{name}说一声谢谢。", ""))


def about_festival(row: dict[str, str], rng: random.Random) -> str:
    name = row["name"]
    middle = [
        rng.choice((f"{name}在{row['date']}。", f"每年{row['date']}是{name}。")),
        rng.choice((f"在这一天，人们会{row['customs']}。", f"常见的活动有{row['customs']}。")),
        rng.choice((f"这个节日的意义是{row['meaning']}。", f"人们借这个节日{row['meaning']}。")),
    ]
    return "".join(middle) + rng.choice(("孩子们总是盼着这一天。", "每到这时，街上格外热闹。", ""))


def about_province(row: dict[str, str], rng: random.Random) -> str:
    name, capital, seat = row["name"], row["capital"], "首府" if row["kind"] == "自治区" else "省会"
    return rng.choice(
        (
            f"{name}是中国的一个{row['kind']}，简称“{row['short']}”，{seat}是{capital}。",
            f"{capital}是{name}的{seat}，{name}的简称是“{row['short']}”。",
            f"如果去{name}旅行，常常先到{seat}{capital}。{name}简称“{row['short']}”。",
        )
    ) + rng.choice(("那里有许多名胜和小吃。", f"{capital}的交通很方便，可以坐火车或飞机到达。", ""))


def about_country(row: dict[str, str], rng: random.Random) -> str:
    name, capital, continent = row["name"], row["capital"], row["continent"]
    return rng.choice(
        (
            f"{name}位于{continent}，首都是{capital}。",
            f"{capital}是{name}的首都，{name}在{continent}。",
            f"{continent}有一个国家叫{name}，它的首都是{capital}。",
        )
    )


def about_planet(row: dict[str, str], rng: random.Random) -> str:
    name, order = row["name"], row["order"]
    return rng.choice(
        (
            f"{name}是太阳系的行星之一，按离太阳由近到远排在第{order}位。{row['fact']}。",
            f"在太阳系的八大行星中，{name}排在第{order}位。{row['fact']}。",
        )
    )


def about_idiom(row: dict[str, str], rng: random.Random) -> str:
    idiom, meaning = row["idiom"], row["meaning"]
    return rng.choice(
        (
            f"成语“{idiom}”的意思是：{meaning}。",
            f"“{idiom}”是一个成语，意思是{meaning}。",
            f"老师在黑板上写下“{idiom}”，告诉我们它的意思：{meaning}。",
            f"有人问起“{idiom}”，字典上说：{meaning}。",
            f"我今天学会了成语“{idiom}”，它的意思是{meaning}。",
        )
    )


def about_concept(row: dict[str, str], rng: random.Random) -> str:
    return row["explanation"] + "。" + rng.choice(("", f"了解{row['name']}，对我们的生活和学习都有帮助。"))


def about_poem(row: dict[str, str], rng: random.Random) -> str:
    return rng.choice(
        (
            f"“{row['line']}”出自{row['dynasty']}代诗人{row['author']}的《{row['title']}》。",
            f"{row['dynasty']}代诗人{row['author']}在《{row['title']}》里写道：“{row['line']}。”",
        )
    )


ABOUT: dict[str, Callable[[dict[str, str], random.Random], str]] = {
    "animals": about_animal,
    "plants": about_plant,
    "jobs": about_job,
    "festivals": about_festival,
    "provinces": about_province,
    "countries": about_country,
    "planets": about_planet,
    "idioms": about_idiom,
    "concepts": about_concept,
    "poems": about_poem,
}
LONG = ("animals", "plants", "jobs", "festivals")  # rows that fill a paragraph by themselves
