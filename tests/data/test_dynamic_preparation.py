"""System prompts that a model writes, through the whole preparation and a real server."""

import json

import datasets
import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import CorpusConfig, DataConfig, EndpointConfig, SystemPromptConfig
from gemma_keras.data.prepare import prepare
from tests.text.endpoint_client.fake_server import REPLIES, ChatServer


@pytest.fixture
def root(tmp_path):
    (tmp_path / "corpora" / "belle").mkdir(parents=True)
    rows = [
        {"instruction": f"请介绍第{i}座山", "input": "", "output": f"第{i}座山很高，风景也好。"} for i in range(130)
    ]
    (tmp_path / "corpora" / "belle" / "a.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return tmp_path / "corpora"


def run(root, tokenizer, out, url, cache="", concurrency=8, **prompts):
    shares = {"none": 0.2, "fixed": 0.4, "dynamic": 0.4} | prompts
    endpoint = EndpointConfig(url=url, model="m", concurrency=concurrency, timeout=5.0, retries=1)
    config = DataConfig(
        root=str(root),
        corpora=(CorpusConfig(name="belle"),),
        rows=100,
        validation_rows=10,
        system_prompts=SystemPromptConfig(**shares, endpoint=endpoint, cache=cache),
    )
    return prepare(config, tokenizer, out, progress=lambda line: None)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_exact_kinds_and_the_same_bytes_from_the_cache(root, tokenizer, tmp_path):
    with ChatServer() as server:
        report = run(root, tokenizer, tmp_path / "one" / "data", server.url)
        asked = len(server.asked)
    assert report["by_system_prompt"] == {"none": 20, "fixed": 40, "dynamic": 40} and asked == 44
    assert report["validation"]["by_system_prompt"] == {"none": 2, "fixed": 4, "dynamic": 4}
    assert report["system_prompt_failures"] == 0
    # Nobody listens at the endpoint any more: all answers come from the file of the first run.
    again = run(root, tokenizer, tmp_path / "two", server.url, cache=str(tmp_path / "one" / "system_prompts.sqlite"))
    assert again == report and contents(tmp_path / "one" / "data") == contents(tmp_path / "two")
    rows = datasets.load_from_disk(str(tmp_path / "two" / "train"))
    written = [tokenizer.decode(row["tokens"]) for row in rows if row["system_prompt"] == "dynamic"]
    assert len(set(written)) == 40 and all(text.startswith("system\n") for text in written)
    with pytest.raises(UserError, match="cannot be reached|no answer|connect"):
        run(root, tokenizer, tmp_path / "three", server.url)
    assert not (tmp_path / "three").exists()


def test_failures_are_replaced_counted_and_listed(root, tokenizer, tmp_path):
    with ChatServer(
        lambda asked, before: REPLIES["wrong_schema" if "第3" in asked.text else "normal"](asked.body)
    ) as server:
        report = run(root, tokenizer, tmp_path / "data", server.url)
    kinds = report["by_system_prompt"]
    assert kinds["dynamic_failed"] > 0 and kinds["dynamic"] + kinds["dynamic_failed"] == 40 and kinds["fixed"] == 40
    failures = [
        json.loads(line) for line in (tmp_path / "data" / "system_prompt_failures.jsonl").open(encoding="utf-8")
    ]
    both = kinds["dynamic_failed"] + report["validation"]["by_system_prompt"].get("dynamic_failed", 0)
    assert len(failures) == report["system_prompt_failures"] == both
    assert all("第3" in failure["content"] and failure["reason"] for failure in failures)
    assert "got a fixed system prompt" in (tmp_path / "data" / "report.md").read_text(encoding="utf-8")


def test_a_dry_run_asks_nobody_and_leaves_nothing(root, tokenizer, tmp_path):
    with ChatServer() as server:
        estimate = run(root, tokenizer, tmp_path / "data", server.url, dry_run=True)
        assert server.asked == []
    assert estimate["calls"] == 44 and estimate["prompt_tokens"] > 44 * 50 and not (tmp_path / "data").exists()


def test_nobody_named_is_told_at_once(root, tokenizer, tmp_path):
    with pytest.raises(UserError, match="nobody is named to write these prompts"):
        run(root, tokenizer, tmp_path / "data", "")


def test_an_endpoint_that_is_of_no_use_ends_the_run(root, tokenizer, tmp_path):
    for concurrency, sentence in ((8, "gives no answers"), (100, "none of the 40 system prompts could be had")):
        with (
            ChatServer(lambda asked, before: REPLIES["cut"](asked.body)) as server,
            pytest.raises(UserError, match=sentence),
        ):
            run(root, tokenizer, tmp_path / "data", server.url, concurrency=concurrency)
        assert not (tmp_path / "data").exists()
