"""The corpus as a whole, and its hand-written rows: bytes, schemas, counts, and held-out rows that are kept apart."""

import configparser
import hashlib
import json
import re
from pathlib import Path

import pytest

from gemma_keras import builtin
from tests.conftest import REPOSITORY

# Of all files, names and bytes: the figures in README and docs/experiments.md rest on them.
SHA256 = "2d54fcbbccfcb7bf63ed40156b8628904a96fd428ad9c73d35826cd54f0c11f2"
HELD_OUT = builtin.CORPUS / "gemmalm_chinese/stage1/data_final/valid.json"
ROW = re.compile(
    r"<start_of_turn>user\n(.+?)\n<end_of_turn><eos>\n<start_of_turn>model\n(.+?)\n<end_of_turn><eos>\n", re.DOTALL
)
SCHEMAS = {
    "belle/handwritten.json": {"instruction", "input", "output"},
    "belle/handwritten_2.json": {"instruction", "input", "output"},
    "alpaca_gpt4_zh/handwritten.json": {"instruction", "input", "output"},
    "alpaca_gpt4_zh/handwritten_2.json": {"instruction", "input", "output"},
    "alpaca_chinese/handwritten.json": {"instruction", "input", "output"},
    "alpaca_chinese/handwritten_2.json": {"instruction", "input", "output"},
    "news_commentary/handwritten.jsonl": {"translation"},
    "hc3_chinese/handwritten.jsonl": {"question", "human_answers", "chatgpt_answers"},
    "firefly/handwritten.jsonl": {"kind", "input", "target"},
    "chinese_modern_poetry/handwritten.jsonl": {"uuid", "prompt", "response"},
    "chinese_poetry/handwritten.json": {"context", "instruction", "response"},
    "classical_modern/handwritten.jsonl": {"inputs", "truth"},
}
# kinds of request that only the held-out rows make, by words that no training request contains
UNSEEN = (
    "通知 谜 清单 道歉 标语 请柬 邀请 请假 日记 自我介绍 广告 店名 发言 演讲 启事 的做法 "
    "规定 须知 公约 采访 笑话 口吻 好处和坏处 优点和缺点 观后感 推荐语 播报 留言 对联 下联"
).split()


def read(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


def held_out() -> list[tuple[str, str]]:
    matches = [ROW.fullmatch(row["text"]) for row in read(HELD_OUT)]
    assert all(matches)
    return [(match[1], match[2]) for match in matches if match]


def training_rows() -> list[dict]:
    return [row for name in SCHEMAS for row in read(builtin.CORPUS / name)]


def test_the_files_are_those_that_the_figures_rest_on() -> None:
    digest, paths = hashlib.sha256(), sorted(path for path in builtin.CORPUS.rglob("*") if path.is_file())
    for path in paths:
        digest.update(path.relative_to(builtin.CORPUS).as_posix().encode() + b"\0" + path.read_bytes())
    assert len(paths) == 160 and max(path.stat().st_size for path in paths) < 1_000_000
    assert digest.hexdigest() == SHA256


def test_an_installed_package_holds_every_file() -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    patterns = setup["options.package_data"]["gemma_keras.builtin"].split(", ")
    taken = {path for pattern in patterns for path in builtin.TOKENIZER.parent.glob(pattern)}
    assert {builtin.TOKENIZER, *builtin.CORPUS.rglob("*.*")} <= taken


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema(name: str) -> None:
    rows = read(builtin.CORPUS / name)
    for row in rows:
        assert set(row) == SCHEMAS[name]
        for key, value in row.items():
            if key != "input":
                assert value, row
    texts = [json.dumps(row, ensure_ascii=False, sort_keys=True) for row in rows]
    assert len(set(texts)) == len(rows)


def test_counts() -> None:
    training, held = training_rows(), held_out()
    assert len(training) >= 600 and len(held) >= 66
    assert len(list((builtin.CORPUS / "zh_wiki").glob("handwritten*.txt"))) >= 20
    paths = sorted((builtin.CORPUS / "cluecorpussmall").glob("handwritten*.txt"))
    documents = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(documents) >= 300 and all(documents) and len(set(documents)) == len(documents)


def test_text_is_clean() -> None:
    """No stray blanks, half-width punctuation between Chinese characters, or characters of other scripts."""
    for path in (*builtin.CORPUS.rglob("handwritten*"), HELD_OUT):
        text = path.read_text(encoding="utf-8")
        assert "\ufffd" not in text and "\t" not in text and "\u3000" not in text, path
        assert not re.search(r"[\u4e00-\u9fff][,;!?][\u4e00-\u9fff]", text), path


def test_articles_have_a_title_a_blank_line_and_a_body() -> None:
    for path in (builtin.CORPUS / "zh_wiki").glob("handwritten*.txt"):
        title, blank, *body = path.read_text(encoding="utf-8").splitlines()
        assert title and not blank and body and all(body), path


def test_held_out_requests_are_of_kinds_that_training_lacks() -> None:
    requests: list[str] = []
    for name in ("belle", "alpaca_gpt4_zh", "alpaca_chinese"):
        requests += [row["instruction"] for path in sorted((builtin.CORPUS / name).iterdir()) for row in read(path)]
    requests += [row["question"] for row in read(builtin.CORPUS / "hc3_chinese" / "handwritten.jsonl")]
    assert not [request for request in requests if any(word in request for word in UNSEEN)]


def test_no_held_out_text_occurs_in_training() -> None:
    training = "\n".join(
        path.read_text(encoding="utf-8").replace("\\n", "\n")
        for path in sorted(builtin.CORPUS.rglob("*.*"))
        if path != HELD_OUT
    )
    for question, answer in held_out():
        assert question not in training and answer not in training
