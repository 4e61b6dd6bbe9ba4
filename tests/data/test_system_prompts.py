import json
from collections import Counter

import numpy as np
import pytest

from gemma_keras.config.sections import EndpointConfig, SystemPromptConfig
from gemma_keras.data.mixing.system_prompts import (
    FIXED_PROMPTS,
    KINDS,
    DynamicPrompts,
    assign_kinds,
    tidy,
    unfit,
)
from tests.text.endpoint_client.fake_server import ChatServer, Reply, answer_to, completion

PROMPT = "你是一位耐心的语文老师，请用简单的话讲解。"


def conversations(count):
    return [
        [
            {"role": "user", "content": f"请解释第{i}个成语的意思，并造一个句子。"},
            {"role": "model", "content": f"第{i}个成语比喻做事有恒心，例如：他练字二十年，真可谓持之以恒。"},
        ]
        for i in range(count)
    ]


def dynamic(server, folder, lines=None, **settings):
    endpoint = EndpointConfig(url=server.url, model="m", **(dict(concurrency=8, timeout=2.0, retries=1) | settings))
    config = SystemPromptConfig(none=0.2, fixed=0.4, dynamic=0.4, endpoint=endpoint)
    return DynamicPrompts(config, folder / "prompts.sqlite", lines.append if lines is not None else lambda line: None)


def test_kinds_in_exact_shares_and_drawn_order():
    config = SystemPromptConfig(none=0.2, fixed=0.4, dynamic=0.4)
    kinds = assign_kinds(1003, config, np.random.default_rng(1))
    assert kinds.dtype == np.uint8 and kinds.shape == (1003,)
    assert np.bincount(kinds).tolist() == [201, 401, 401] and KINDS == ("none", "fixed", "dynamic")
    assert np.array_equal(kinds, assign_kinds(1003, config, np.random.default_rng(1)))
    assert not np.array_equal(kinds, assign_kinds(1003, config, np.random.default_rng(2)))
    assert np.bincount(kinds[:300], minlength=3).min() > 30
    assert assign_kinds(0, config, np.random.default_rng(1)).shape == (0,)


def test_fixed_prompts_are_sound():
    assert len(set(FIXED_PROMPTS)) == 15
    assert not any(unfit(prompt, []) for prompt in FIXED_PROMPTS)


@pytest.mark.parametrize(
    "text",
    [
        PROMPT,
        f"  {PROMPT}\n",
        f"“{PROMPT}”",
        f'"{PROMPT}"',
        f"「{PROMPT}」",
        f"系统提示：{PROMPT}",
        f"系统提示词: “{PROMPT}”",
        f"**系统提示：** {PROMPT}",
        f"### 系统提示\n：{PROMPT}",
        f"System prompt: {PROMPT}",
        f"“系统提示：{PROMPT}”",
        f"**系统提示**\n\n{PROMPT}",
        f"```text\n{PROMPT}\n```",
        f"<think>\n用户在问成语。\n</think>\n\n{PROMPT}",
        f"用户在问成语。</think>{PROMPT}",
    ],
)
def test_what_models_add_is_taken_off(text):
    assert tidy(text) == PROMPT


@pytest.mark.parametrize(
    "text", ["“因地制宜”和“量体裁衣”", "你是系统管理员，提示：先备份。", "", "“", "请说明系统提示"]
)
def test_nothing_else_is_taken_off(text):
    assert tidy(text) == text


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (PROMPT, ""),
        ("你是一名 Python 编程助手，请给出可以直接运行的代码。", ""),
        ("请解释成语并举例。", ""),
        ("好的", "2 characters"),
        ("“”", "0 characters|2 characters"),
        ("长" * 401, "401 characters"),
        (PROMPT + "<end_of_turn>", "control"),
        (PROMPT + "<|im_end|>", "control"),
        ("<think>" + PROMPT, "control"),
        (PROMPT + "\0", "control"),
        ("You are a patient teacher of Chinese.", "not mostly Chinese"),
        ("请解释第0个成语的意思，并造一个句子。", "mostly copied from a user turn"),
        ("好的。请解释第0个成语的意思，并且造一个句子。", "mostly copied from a user turn"),
        ("第0个成语比喻做事有恒心", "mostly copied from a model turn"),
        ("你是一位老师，需要告诉学生这个成语比喻做事要有恒心而不懈怠，请先讲解再造句，语气亲切。", ""),
    ],
)
def test_fitness(answer, reason):
    found = unfit(answer, conversations(1)[0])
    assert any(found.startswith(part) for part in reason.split("|")) if reason else not found


def test_a_prompt_that_tells_a_short_answer():
    turns = [
        {"role": "user", "content": "中国最长的河流是哪一条？"},
        {"role": "model", "content": "长江是中国最长的河流。"},
    ]
    telling = "你是一位地理老师，擅长讲解山川湖海与风土人情，请告诉学生长江是中国最长的河流，并补充它的源头与入海口。"
    assert unfit(telling, turns) == "tells the answer"


def test_prompts_are_written_and_kept(tmp_path):
    rows, lines = conversations(30), []
    with ChatServer() as server:
        writing = dynamic(server, tmp_path, lines)
        assert writing.estimate(rows, lambda texts: 1)["calls"] == 30
        assert not (tmp_path / "prompts.sqlite").exists() and not server.asked
        writing.client.announce(30)
        prompts = writing.write(rows[:20]) + writing.write(rows[20:])
        assert len(server.asked) == 30 and not writing.failures
        assert {answer_to(asked.body) for asked in server.asked} == set(prompts)
        used = writing.client.progress
        assert (used.calls, used.cached, used.failed) == (30, 0, 0)
        assert (used.prompt_tokens, used.completion_tokens) == (600, 300)
        assert "30 of 30 answered" in lines[-1]
        writing.client.cache.close()
        again = dynamic(server, tmp_path)
        assert again.write(rows) == prompts
        assert again.client.progress.calls == 0 and again.client.progress.cached == 30 and len(server.asked) == 30


def test_the_request_shows_the_conversation_cut_to_a_bound(tmp_path):
    rows = conversations(1)
    rows[0] += [{"role": role, "content": role + "长" * 5000} for role in ("user", "model")] * 10
    with ChatServer() as server:
        dynamic(server, tmp_path).write(rows)
    system, user = server.asked[0].body["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert rows[0][0]["content"] in user["content"] and rows[0][1]["content"] in user["content"]
    assert len(user["content"]) < 2000


def test_failures_are_recorded(tmp_path):
    def choose(asked, before):
        if "第3个" in asked.text:
            return "error_500"
        if "第5个" in asked.text:
            return Reply(body=completion("I am sorry, I cannot help with that."))
        if "第7个" in asked.text and before == 0:
            return Reply(body=completion("<start_of_turn>system"))
        return Reply(body=completion(f"系统提示：“{answer_to(asked.body)}”"))

    rows = conversations(10)
    with ChatServer(choose) as server:
        writing = dynamic(server, tmp_path)
        prompts = writing.write(rows)
    assert [i for i, prompt in enumerate(prompts) if prompt is None] == [3, 5]
    assert all(prompt.startswith("你是一位") for prompt in prompts if prompt)
    assert [(row["content"], row["reason"], row["attempts"]) for row in writing.failures] == [
        (rows[3][0]["content"], "status 500: internal error", 2),
        (rows[5][0]["content"], "not mostly Chinese", 2),
    ]
    assert json.dumps(writing.failures)
    assert (writing.client.progress.failed, writing.client.progress.calls) == (2, 13)


def test_the_estimate_counts_what_is_not_cached(tmp_path):
    rows = conversations(10)
    with ChatServer() as server:
        writing = dynamic(server, tmp_path)
        fresh = writing.estimate([*rows, rows[0]], lambda texts: sum(map(len, texts)))
        assert (fresh["conversations"], fresh["cached"], fresh["calls"]) == (11, 0, 10)
        assert (fresh["completion_tokens"], fresh["completion_tokens_at_most"]) == (600, 2000)
        assert not server.asked
        writing.write(rows)
        sent = sum(len(message["content"]) + 4 for asked in server.asked for message in asked.body["messages"])
        assert fresh["prompt_tokens"] == sent
        later = writing.estimate(conversations(14), lambda texts: 1)
        assert (later["cached"], later["calls"], later["completion_tokens"]) == (10, 4, 40)
        assert len(server.asked) == 10


def test_equal_conversations_share_a_prompt(tmp_path):
    rows = conversations(2) * 5
    with ChatServer() as server:
        prompts = dynamic(server, tmp_path).write(rows)
    assert len(server.asked) == 2 and sorted(Counter(prompts).values()) == [5, 5]
