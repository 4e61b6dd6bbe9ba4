"""Generated chat rows whose answers are computed: arithmetic, word problems, units, sequences, dates, counting."""

import random
from collections.abc import Callable
from fractions import Fraction

Row = tuple[str, str, str]  # instruction, input, output

_SIGNS = {"＋": "加", "－": "减", "×": "乘以", "÷": "除以"}
_PEOPLE = ("小明", "小红", "小刚", "小丽", "小军", "小雨", "李华", "王芳", "小林", "小雪")
_GOODS = (
    ("苹果", "个", 1, 9),
    ("铅笔", "支", 1, 5),
    ("笔记本", "本", 3, 15),
    ("面包", "个", 2, 12),
    ("书", "本", 10, 60),
    ("帽子", "顶", 15, 80),
    ("雨伞", "把", 20, 70),
    ("杯子", "个", 8, 40),
)
_UNITS = (
    ("米", "厘米", 100),
    ("千米", "米", 1000),
    ("千克", "克", 1000),
    ("小时", "分钟", 60),
    ("分钟", "秒", 60),
    ("吨", "千克", 1000),
    ("天", "小时", 24),
    ("星期", "天", 7),
    ("元", "角", 10),
    ("米", "分米", 10),
    ("年", "个月", 12),
    ("升", "毫升", 1000),
)
_WEEK = "一二三四五六日"


def operation(rng: random.Random) -> Row:
    """One sum of two numbers."""
    sign = rng.choice(sorted(_SIGNS))
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    if sign == "－" and a < b:
        a, b = b, a
    if sign == "×":
        b = rng.randint(2, 9)
    if sign == "÷":
        b = rng.randint(2, 9)
        a = b * rng.randint(2, 30)
    result = {"＋": a + b, "－": a - b, "×": a * b, "÷": a // b}[sign]
    question = rng.choice(
        (
            f"计算：{a}{sign}{b}＝？",
            f"{a}{_SIGNS[sign]}{b}等于多少？",
            f"请算一算{a}{sign}{b}。",
            f"帮我算一下{a}{sign}{b}是多少。",
        )
    )
    return question, "", rng.choice((f"{a}{sign}{b}＝{result}", f"{a}{sign}{b}＝{result}，所以答案是{result}。"))


def two_steps(rng: random.Random) -> Row:
    """A sum with a product first."""
    a, b, c = rng.randint(2, 60), rng.randint(2, 9), rng.randint(2, 12)
    product = b * c
    return (
        rng.choice((f"计算：{a}＋{b}×{c}。", f"请一步一步计算{a}＋{b}×{c}。")),
        "",
        f"先算乘法：{b}×{c}＝{product}\n再算加法：{a}＋{product}＝{a + product}\n答案是{a + product}。",
    )


def giving(rng: random.Random) -> Row:
    who, other = rng.sample(_PEOPLE, 2)
    noun, unit, *_ = rng.choice(_GOODS)
    a = rng.randint(8, 60)
    b, c = rng.randint(2, a - 1), rng.randint(2, 30)
    rest = a - b
    return (
        f"{who}有{a}{unit}{noun}，送给{other}{b}{unit}，又买来{c}{unit}，现在有多少{unit}？",
        "",
        f"送出以后还有{a}－{b}＝{rest}{unit}，又买来{c}{unit}，{rest}＋{c}＝{rest + c}{unit}。\n"
        f"答：{who}现在有{rest + c}{unit}{noun}。",
    )


def shopping(rng: random.Random) -> Row:
    (n1, u1, low1, high1), (n2, u2, low2, high2) = rng.sample(_GOODS, 2)
    p1, p2, k1, k2 = rng.randint(low1, high1), rng.randint(low2, high2), rng.randint(2, 6), rng.randint(2, 6)
    a, b = p1 * k1, p2 * k2
    return (
        f"一{u1}{n1}{p1}元，一{u2}{n2}{p2}元，买{k1}{u1}{n1}和{k2}{u2}{n2}一共要多少钱？",
        "",
        f"{k1}{u1}{n1}：{p1}×{k1}＝{a}（元）\n{k2}{u2}{n2}：{p2}×{k2}＝{b}（元）\n"
        f"一共：{a}＋{b}＝{a + b}（元）\n答：一共要{a + b}元。",
    )


def change(rng: random.Random) -> Row:
    noun, unit, low, high = rng.choice(_GOODS)
    price, count = rng.randint(low, high), rng.randint(2, 5)
    cost = price * count
    paid = next(note for note in (10, 20, 50, 100, 200, 500) if note > cost)
    who = rng.choice(_PEOPLE)
    return (
        f"{who}买了{count}{unit}{noun}，每{unit}{price}元，付了{paid}元，应找回多少元？",
        "",
        f"花了{price}×{count}＝{cost}元，应找回{paid}－{cost}＝{paid - cost}元。",
    )


def travel(rng: random.Random) -> Row:
    vehicle, low, high = rng.choice((("汽车", 40, 100), ("火车", 80, 250), ("自行车", 10, 20), ("轮船", 20, 40)))
    speed, hours = rng.randint(low, high), rng.randint(2, 8)
    way = speed * hours
    if rng.random() < 0.5:
        return (
            f"一{_vehicle_unit(vehicle)}{vehicle}每小时行{speed}公里，{hours}小时能行多少公里？",
            "",
            f"路程等于速度乘以时间：{speed}×{hours}＝{way}（公里）。\n答：{hours}小时能行{way}公里。",
        )
    return (
        f"一{_vehicle_unit(vehicle)}{vehicle}{hours}小时行了{way}公里，平均每小时行多少公里？",
        "",
        f"速度等于路程除以时间：{way}÷{hours}＝{speed}（公里）。\n答：平均每小时行{speed}公里。",
    )


def _vehicle_unit(vehicle: str) -> str:
    return {"火车": "列", "轮船": "艘"}.get(vehicle, "辆")


def sharing(rng: random.Random) -> Row:
    noun, unit, *_ = rng.choice(_GOODS)
    each, people, rest = rng.randint(2, 12), rng.randint(3, 9), 0
    if rng.random() < 0.5:
        rest = rng.randint(1, people - 1)
    total = each * people + rest
    answer = f"{total}÷{people}＝{each}" + (f"余{rest}" if rest else "")
    tail = f"每人分到{each}{unit}" + (f"，还剩{rest}{unit}。" if rest else "，正好分完。")
    return f"把{total}{unit}{noun}平均分给{people}个人，每人分到多少{unit}？有没有剩余？", "", f"{answer}。{tail}"


def unit(rng: random.Random) -> Row:
    big, small, factor = rng.choice(_UNITS)
    count = rng.randint(2, 30)
    if rng.random() < 0.5:
        return (
            rng.choice((f"{count}{big}等于多少{small}？", f"把{count}{big}换算成{small}。")),
            "",
            f"1{big}等于{factor}{small}，所以{count}{big}等于{count}×{factor}＝{count * factor}{small}。",
        )
    return (
        rng.choice((f"{count * factor}{small}等于多少{big}？", f"把{count * factor}{small}换算成{big}。")),
        "",
        f"1{big}等于{factor}{small}，所以{count * factor}{small}等于{count * factor}÷{factor}＝{count}{big}。",
    )


def rectangle(rng: random.Random) -> Row:
    a = rng.randint(3, 30)
    b = rng.randint(2, a - 1)
    return (
        f"一个长方形长{a}厘米，宽{b}厘米，它的周长和面积各是多少？",
        "",
        f"周长＝（{a}＋{b}）×2＝{2 * (a + b)}（厘米）\n面积＝{a}×{b}＝{a * b}（平方厘米）\n"
        f"答：周长是{2 * (a + b)}厘米，面积是{a * b}平方厘米。",
    )


def discount(rng: random.Random) -> Row:
    price, tenths = 10 * rng.randint(3, 60), rng.randint(5, 9)
    cost = price * tenths // 10
    return (
        f"一件衣服原价{price}元，打{'五六七八九'[tenths - 5]}折后是多少元？",
        "",
        f"打{'五六七八九'[tenths - 5]}折就是按原价的{tenths}0%出售：{price}×0.{tenths}＝{cost}（元）。\n"
        f"答：打折后是{cost}元。",
    )


def average(rng: random.Random) -> Row:
    count = rng.randint(3, 5)
    numbers = [rng.randint(2, 40) for _ in range(count - 1)]
    numbers.append(next(n for n in range(2, 60) if (sum(numbers) + n) % count == 0))
    total = sum(numbers)
    return (
        rng.choice(("计算下面这组数的平均数。", "求这些数的平均数。")),
        "，".join(map(str, numbers)),
        f"总和是{'＋'.join(map(str, numbers))}＝{total}，一共{count}个数，平均数是{total}÷{count}＝{total // count}。",
    )


def order(rng: random.Random) -> Row:
    numbers = rng.sample(range(1, 200), rng.randint(4, 6))
    down = rng.random() < 0.5
    words = "从大到小" if down else "从小到大"
    asked = rng.choice((f"把下面的数{words}排列：", f"请将这些数{words}排序："))
    return (
        asked + "，".join(map(str, numbers)) + "。",
        "",
        f"{words}排列是：{'，'.join(map(str, sorted(numbers, reverse=down)))}。",
    )


def larger(rng: random.Random) -> Row:
    a, b = rng.sample(range(10, 1000), 2)
    return f"{a}和{b}，哪个数更大？大多少？", "", f"{max(a, b)}更大，大{max(a, b)}－{min(a, b)}＝{abs(a - b)}。"


def parity(rng: random.Random) -> Row:
    n = rng.randint(10, 999)
    kind = "偶数" if n % 2 == 0 else "奇数"
    return (
        f"{n}是奇数还是偶数？",
        "",
        f"{n}的个位是{n % 10}，{'能' if n % 2 == 0 else '不能'}被2整除，所以它是{kind}。",
    )


def factors(rng: random.Random) -> Row:
    n = rng.randint(6, 60)
    found = [k for k in range(1, n + 1) if n % k == 0]
    if len(found) == 2:
        return f"{n}是质数吗？", "", f"{n}是质数，因为它只有1和{n}两个因数。"
    return rng.choice(
        (
            (f"{n}是质数吗？", "", f"{n}不是质数，因为{n}÷{found[1]}＝{n // found[1]}，它还有别的因数。"),
            (f"写出{n}的所有因数。", "", f"{n}的因数有：{'、'.join(map(str, found))}。"),
        )
    )


def sequence(rng: random.Random) -> Row:
    start, step = rng.randint(1, 30), rng.randint(2, 9)
    numbers = [start + step * i for i in range(5)]
    return (
        rng.choice(("找规律，写出下一个数：", "下面这列数的下一个数是多少？"))
        + "，".join(map(str, numbers))
        + "，（）。",
        "",
        f"每个数比前一个数大{step}，所以下一个数是{numbers[-1]}＋{step}＝{numbers[-1] + step}。",
    )


def weekday(rng: random.Random) -> Row:
    today, days = rng.randrange(7), rng.randint(3, 40)
    weeks, rest = divmod(days, 7)
    name = f"星期{_WEEK[(today + days) % 7]}"
    why = (
        f"{days}÷7＝{weeks}余{rest}"
        if weeks and rest
        else f"{days}÷7＝{weeks}"
        if weeks
        else f"不到一个星期，往后数{days}天"
    )
    return f"今天是星期{_WEEK[today]}，{days}天以后是星期几？", "", f"一个星期有7天，{why}，所以{days}天以后是{name}。"


def clock(rng: random.Random) -> Row:
    hour, minute, length = (
        rng.randint(7, 11),
        rng.choice((0, 10, 15, 20, 30, 40, 45)),
        rng.choice((20, 30, 40, 50, 75, 90)),
    )
    end = hour * 60 + minute + length
    what = rng.choice(("一节课", "一部短片", "一场比赛", "会议"))
    return (
        f"{what}从{hour}时{minute:02d}分开始，进行{length}分钟，什么时候结束？",
        "",
        f"{hour}时{minute:02d}分过{length}分钟是{end // 60}时{end % 60:02d}分，所以{end // 60}时{end % 60:02d}分结束。",
    )


def age(rng: random.Random) -> Row:
    child, gap, years = rng.randint(5, 14), rng.randint(22, 35), rng.randint(2, 15)
    parent = rng.choice(("妈妈", "爸爸"))
    later = child + years
    return (
        f"小华今年{child}岁，{parent}比他大{gap}岁，{years}年后{parent}多少岁？",
        "",
        f"{years}年后小华{child}＋{years}＝{later}岁，{parent}总比他大{gap}岁，是{later}＋{gap}＝{later + gap}岁。",
    )


def fraction(rng: random.Random) -> Row:
    value = Fraction(rng.randint(1, 8), rng.randint(2, 9))
    k = rng.randint(2, 9)
    a, b = value.numerator * k, value.denominator * k
    if value.denominator == 1:
        return f"把{a}/{b}化成最简分数。", "", f"分子和分母同时除以{b}，得到{value.numerator}。"
    return (
        f"把{a}/{b}化成最简分数。",
        "",
        f"分子和分母的最大公因数是{k}，同时除以{k}，得到{value.numerator}/{value.denominator}。",
    )


KINDS: tuple[Callable[[random.Random], Row], ...] = (
    operation,
    two_steps,
    giving,
    shopping,
    change,
    travel,
    sharing,
    unit,
    rectangle,
    discount,
    average,
    order,
    larger,
    parity,
    factors,
    sequence,
    weekday,
    clock,
    age,
    fraction,
)
