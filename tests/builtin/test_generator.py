"""Generated rows: the same bytes from the same seed, and every computed answer right."""

import random
import re
from fractions import Fraction
from pathlib import Path

import pytest

from gemma_keras import builtin
from gemma_keras.builtin import generator, phrases, sums, tables

NUMBER = r"\d+(?:\.\d+)?"
EQUATION = re.compile(rf"((?:[（]?{NUMBER}[）]?[＋－×÷])+[（]?{NUMBER}[）]?)＝({NUMBER})(?:余(\d+))?")


def value(expression: str) -> Fraction:
    """Evaluate a sum in Chinese notation, by Python's own arithmetic on exact fractions."""
    exact = re.sub(NUMBER, lambda match: f"Fraction('{match[0]}')", expression)
    return eval(exact.translate(str.maketrans("＋－×÷（）", "+-*/()")), {"Fraction": Fraction})


def wrong_equations(text: str) -> list[str]:
    wrong = []
    for expression, result, rest in EQUATION.findall(text):
        if expression.count("（") != expression.count("）"):
            expression = expression.strip("（）")
        if rest:
            a, b = map(int, expression.split("÷"))
            right = divmod(a, b) == (int(result), int(rest))
        else:
            right = value(expression) == Fraction(result)
        if not right:
            wrong.append(f"{expression}＝{result}")
    return wrong


def test_the_check_of_equations_finds_mistakes() -> None:
    assert wrong_equations("先算2＋3×4＝14，再算（8＋5）×2＝26，17÷5＝3余2，0.5×3＝1.5") == []
    assert wrong_equations("2＋3＝6") and wrong_equations("17÷5＝3余1") and wrong_equations("（8＋5）×2＝27")


@pytest.mark.parametrize("make", sums.KINDS, ids=lambda make: make.__name__)
def test_sums_are_right(make) -> None:
    rng = random.Random(7)
    for _ in range(300):
        instruction, _, output = make(rng)
        assert wrong_equations(output) == [], (instruction, output)


def test_equations_of_all_text_are_right(tmp_path: Path) -> None:
    root = builtin.data_root(tmp_path, chat_rows=1500, text_bytes=200_000)
    found = 0
    for path in sorted(root.rglob("*.*")):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert wrong_equations(text) == [], path
            found += len(EQUATION.findall(text))
    assert found > 300


def test_the_files_that_are_checked_in_are_those_that_are_written(tmp_path: Path) -> None:
    root = builtin.data_root(tmp_path)
    written, kept = (
        {path.relative_to(top): path.read_bytes() for path in top.rglob("*.*")} for top in (root, builtin.CORPUS)
    )
    assert written == kept and len(kept) == 160


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def draws(make, count: int = 300) -> list[tuple[list[int], str, str]]:
    rng = random.Random(11)
    rows = [make(rng) for _ in range(count)]
    return [(numbers(instruction + given), instruction, output) for instruction, given, output in rows]


def test_answers_that_are_no_equations() -> None:
    for given, asked, output in draws(sums.order):
        assert numbers(output) == sorted(given, reverse="从大到小" in asked)
    for (n,), _, output in draws(sums.parity):
        assert ("偶数" in output) == (n % 2 == 0)
    for (n,), _, output in draws(sums.factors):
        found = [k for k in range(1, n + 1) if n % k == 0]
        assert (
            numbers(output.split("：")[1]) == found
            if "因数有：" in output
            else ("不是质数" in output) == (len(found) > 2)
        )
    for given, _, output in draws(sums.larger):
        assert output.startswith(f"{max(given)}更大")
    for (days,), asked, output in draws(sums.weekday):
        today, later = (" 一二三四五六日".index(day) for day in re.findall(r"星期([一二三四五六日])", asked + output))
        assert (later - today - days) % 7 == 0
    for (hour, minute, length), _, output in draws(sums.clock):
        end = hour * 60 + minute + length
        assert numbers(output)[-2:] == [end // 60, end % 60]
    for (a, b), _, output in draws(sums.fraction):
        assert Fraction(output.rsplit("到", 1)[1].rstrip("。")) == Fraction(a, b)
    for given, _, output in draws(sums.average):
        assert numbers(output)[-1] * len(given) == sum(given)
    for given, _, output in draws(sums.change):
        assert numbers(output)[-1] == given[2] - given[0] * given[1]


def test_code_answers_are_right() -> None:
    rng = random.Random(5)
    for _ in range(300):
        instruction, _, output = phrases.code(rng)
        given = numbers(instruction)
        if "的和" in instruction:
            assert numbers(output)[-1] == sum(range(given[0], given[1] + 1))
        elif "的结果" in instruction:
            expression = re.search(r"\d+ (%|//) \d+", instruction)
            assert expression and numbers(output)[-1] == eval(expression[0])
        else:
            compile(output.split("\n\n")[0], "answer", "exec")


def test_counting_characters_and_turning_words() -> None:
    rng = random.Random(5)
    for _ in range(100):
        instruction, _, output = phrases.count_characters(rng)
        assert numbers(output) == [len(instruction[1 : instruction.index("”")])]
        instruction, _, output = phrases.backwards(rng)
        assert re.findall("“(.+?)”", instruction)[0] == re.findall("“(.+?)”", output)[0][::-1]


def test_no_slot_is_left_open_and_punctuation_is_single() -> None:
    rows = generator.chat_rows(3000, seed=2)
    lines = [*generator.text_lines(300_000, seed=2), *(row["output"] for row in rows), *(row["input"] for row in rows)]
    for line in lines:
        assert not re.search(r"[{}_]|。。|，，|；。|，。|”。”", line.replace("def ", "")), line
        assert line == line.strip()


def test_tables_name_a_thing_once() -> None:
    for name, key in (
        ("animals", "name"),
        ("plants", "name"),
        ("idioms", "idiom"),
        ("concepts", "name"),
        ("tips", "topic"),
        ("provinces", "capital"),
        ("countries", "capital"),
        ("classifiers", "noun"),
        ("words", "zh"),
    ):
        values = [row[key] for row in tables.table(name)]
        assert len(set(values)) == len(values), name


def test_antonyms_have_one_answer() -> None:
    pairs = [(row["a"], row["b"]) for row in tables.table("antonyms")]
    words = [word for pair in pairs for word in pair]
    assert len(set(words)) == len(words)


def test_same_seed_same_bytes_and_another_seed_other_text(tmp_path: Path) -> None:
    small = {"chat_rows": 300, "text_bytes": 60_000}
    first, second = (builtin.data_root(tmp_path / name, **small) for name in ("a", "b"))
    assert first.name == second.name
    files = sorted(path.relative_to(first) for path in first.rglob("*.*"))
    assert files == sorted(path.relative_to(second) for path in second.rglob("*.*"))
    for path in files:
        assert (first / path).read_bytes() == (second / path).read_bytes()
    other = builtin.data_root(tmp_path / "a", **small, seed=1)
    assert other != first
    assert (other / "belle/generated.json").read_bytes() != (first / "belle/generated.json").read_bytes()


def test_volume(tmp_path: Path) -> None:
    rows = generator.chat_rows(4000, seed=0)
    assert len({(row["instruction"], row["input"]) for row in rows}) == 4000
    root = builtin.data_root(tmp_path, chat_rows=100, text_bytes=400_000)
    size = sum(path.stat().st_size for name in ("zh_wiki", "cluecorpussmall") for path in (root / name).iterdir())
    assert 400_000 <= size <= 500_000


def test_data_root_is_reused_and_leaves_nothing_else(tmp_path: Path) -> None:
    root = builtin.data_root(tmp_path, chat_rows=50, text_bytes=10_000)
    mark = (root / "belle/generated.json").stat().st_mtime_ns
    assert builtin.data_root(tmp_path, chat_rows=50, text_bytes=10_000) == root
    assert (root / "belle/generated.json").stat().st_mtime_ns == mark
    assert list(tmp_path.iterdir()) == [root]


def test_data_root_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA_KERAS_CACHE", str(tmp_path / "cache"))
    assert builtin.data_root(chat_rows=10, text_bytes=5_000).parent == tmp_path / "cache"
