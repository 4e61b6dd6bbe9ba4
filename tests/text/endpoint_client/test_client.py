import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from email.utils import formatdate

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import EndpointConfig
from gemma_keras.text.endpoint_client import rate_limits
from gemma_keras.text.endpoint_client.answer_cache import GROUP, AnswerCache
from gemma_keras.text.endpoint_client.client import ChatClient, request_key
from gemma_keras.text.endpoint_client.outcome import judge
from tests.conftest import REPOSITORY
from tests.text.endpoint_client.fake_server import REPLIES, UNUSABLE, ChatServer, Reply, answer_to, completion, error

KEY = "sk-very/secret-0123456789"


@pytest.fixture(autouse=True)
def _settings(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("gemma_keras.text.endpoint_client.client.PATIENCE", 1.0)


def questions(count):
    return [[{"role": "system", "content": "简短回答"}, {"role": "user", "content": f"第{i}题"}] for i in range(count)]


def expected(requests):
    return [answer_to({"messages": request}) for request in requests]


def client(server, folder, report=lambda line: None, **settings):
    url = server if isinstance(server, str) else server.url
    settings = dict(concurrency=8, timeout=2.0) | settings
    return ChatClient(
        EndpointConfig(url=url, model="m", **settings), AnswerCache(folder / "answers"), report=report, backoff=0.01
    )


def test_answers_come_in_order_and_are_kept(tmp_path):
    requests = questions(40)
    requests += requests[:5]
    lines = []
    with ChatServer() as server:
        asking = client(server, tmp_path, lines.append, temperature=0.3, max_tokens=17)
        done = asking.complete_all(requests)
        assert [one.text for one in done] == expected(requests)
        assert all((one.attempts, one.reason) == (1, "") for one in done)
        assert len(server.asked) == 40
        asked = server.asked[0]
        assert asked.headers["authorization"] == f"Bearer {KEY}"
        assert asked.body == {"model": "m", "messages": asked.body["messages"], "temperature": 0.3, "max_tokens": 17}
        assert "45 of 45 answered (5 from the cache), 0 failed; 800 prompt and 400 completion tokens" in lines[-1]
        again = client(server, tmp_path, temperature=0.3, max_tokens=17)
        assert [(one.text, one.attempts) for one in again.complete_all(requests)] == [
            (t, 0) for t in expected(requests)
        ]
        assert len(server.asked) == 40 and again.progress.calls == 0 and again.progress.cached == 45
    assert KEY.encode() not in (tmp_path / "answers").read_bytes()


def test_a_key_for_all_that_the_answer_depends_on():
    (one, two), plain = questions(2), EndpointConfig(model="m")
    others = [
        EndpointConfig(model="n"),
        EndpointConfig(model="m", temperature=0),
        EndpointConfig(model="m", max_tokens=9),
    ]
    keys = {request_key(plain, one), request_key(plain, two), *(request_key(other, one) for other in others)}
    assert len(keys) == 5
    same = EndpointConfig(model="m", url="http://elsewhere", retries=1, timeout=3, concurrency=2)
    assert request_key(same, one) == request_key(plain, one)


def test_no_key_no_header(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " ")
    with ChatServer() as server:
        client(server, tmp_path).complete_all(questions(1))
    assert "authorization" not in server.asked[0].headers


def patience(name):
    """Seconds to wait for a reply: few where it never comes, else so many that a busy machine does not look like trouble."""
    return 1.0 if name in ("hang", "drip") else 30.0


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_passing_trouble_is_got_over(name, tmp_path):
    requests = questions(6)
    with ChatServer(lambda asked, before: name if before < 2 else "normal") as server:
        done = client(server, tmp_path, timeout=patience(name)).complete_all(requests)
    assert [one.text for one in done] == expected(requests)
    # A refusal for the rate holds all requests back, so that some meet it less often.
    assert name in ("limited", "error_503") or [one.attempts for one in done] == [3] * 6


@pytest.mark.parametrize("name", [*UNUSABLE, "filtered", "too_long"])
def test_a_lasting_trouble_is_recorded(name, tmp_path):
    with ChatServer(lambda asked, before: name if asked.text == "第2题" else "normal") as server:
        asking = client(server, tmp_path, timeout=patience(name), retries=1)
        done = asking.complete_all(questions(6))
    assert [bool(one.text) for one in done] == [i != 2 for i in range(6)]
    assert done[2].reason and asking.progress.failed == 1
    if name in ("filtered", "too_long"):
        assert done[2].attempts == 1


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (error(401, f"Incorrect API key provided: {KEY}"), r"\(status 401: Incorrect API key provided: \*\*\*\)"),
        (error(402, "Insufficient Balance"), "status 402: Insufficient Balance"),
        (error(403, "no access"), "status 403: no access"),
        (error(404, "no such path"), "status 404: no such path"),
        (error(400, "The model `m` does not exist"), "status 400: The model `m` does not exist"),
        (error(429, "You exceeded your quota", "insufficient_quota"), "status 429: You exceeded your quota"),
        (Reply(status=301, headers={"Location": "/"}), "status 301"),
    ],
)
def test_what_no_repetition_mends_ends_the_run(reply, said, tmp_path):
    with ChatServer(lambda asked, before: reply) as server:
        with pytest.raises(UserError, match=said) as caught:
            client(server, tmp_path).complete_all(questions(50))
        assert len(server.asked) <= 8
        assert server.url in str(caught.value)
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("name", ["error_500", "too_long", "cut"])
def test_an_endpoint_that_answers_nothing_ends_the_run(name, tmp_path):
    with ChatServer(lambda asked, before: name) as server:
        with pytest.raises(UserError, match="gives no answers"):
            client(server, tmp_path, retries=1, concurrency=4).complete_all(questions(100))
        assert len(server.asked) <= 16


def test_an_endpoint_that_cannot_be_reached(tmp_path):
    with ChatServer() as server:
        url = server.url
    for count in (1, 100):
        with pytest.raises(UserError, match="gives no answers .*ConnectError.*check that it runs"):
            client(url, tmp_path, retries=1).complete_all(questions(count))


@pytest.mark.parametrize("url", ["", "localhost:8000/v1", "ftp://host", "http://", "http://a b", "http://host:port"])
def test_an_unsound_url(url, tmp_path):
    with pytest.raises(UserError, match="give one such as"):
        client(url, tmp_path)


@pytest.mark.parametrize("key", ["密钥", "a\nb"])
def test_an_unsound_key(key, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match=r"the API key in \$OPENAI_API_KEY") as caught:
        client("http://localhost/v1", tmp_path)
    assert key not in str(caught.value)


def test_the_callers_check(tmp_path):
    def choose(asked, before):
        return Reply(body=completion("很好" if before == 0 and asked.text != "第1题" else "不行"))

    with ChatServer(choose) as server:
        done = client(server, tmp_path, retries=2).complete_all(questions(2), lambda i, t: "bad" * (t == "不行"))
        assert [(one.text, one.reason, one.attempts) for one in done] == [("很好", "", 1), ("", "bad", 3)]
        # What the cache holds must pass the check too.
        done = client(server, tmp_path, retries=0).complete_all(questions(1), lambda i, t: "bad" * (t == "很好"))
        assert [(one.text, one.attempts) for one in done] == [("不行", 1)]


def test_a_mixture_of_everything(tmp_path):
    draws = random.Random(1)
    names = [name for name in UNUSABLE if name not in ("hang", "drip")]

    def choose(asked, before):
        if asked.text in ("第7题", "第70题"):
            return "error_500"
        if asked.text == "第99题":
            return "filtered"
        if draws.random() < 0.02:
            return draws.choice(("hang", "drip"))
        return draws.choice(names) if draws.random() < 0.3 else draws.choice(("normal", "normal", "slow"))

    requests = questions(300)
    with ChatServer(choose) as server:
        asking = client(server, tmp_path, concurrency=30, timeout=0.5, retries=8)
        done = asking.complete_all(requests)
        failed = [i for i, one in enumerate(done) if one.reason]
        assert failed == [7, 70, 99]
        assert [one.text for one in done] == [t if i not in failed else "" for i, t in enumerate(expected(requests))]
        assert (asking.progress.answered, asking.progress.failed) == (297, 3)
        # On a busy machine a call may run out of time before the server has read it.
        assert sum(one.attempts for one in done) == asking.progress.calls >= len(server.asked)
        assert 5 <= server.most_at_once <= 30


@pytest.mark.parametrize("concurrency", [1, 5])
def test_the_bound_on_concurrency(concurrency, tmp_path):
    with ChatServer(lambda asked, before: Reply(body=completion("好"), delay=0.02)) as server:
        client(server, tmp_path, concurrency=concurrency).complete_all(questions(30))
    assert server.most_at_once == concurrency


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"Retry-After": "0.5"}, 0.5),
        (503, {"retry-after-ms": "500"}, 0.5),
        (429, {"Retry-After": "date"}, 1),
        (429, {"x-ratelimit-reset-requests": "500ms"}, 0.5),
        (200, {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "0.5s"}, 0.5),
        (200, {"x-ratelimit-remaining-tokens": "150", "x-ratelimit-reset-tokens": "0m0.5s"}, 0.5),
        (200, {"x-ratelimit-remaining-tokens": "250", "x-ratelimit-reset-tokens": "6m0s"}, 0),
    ],
)
def test_all_requests_hold_back_as_asked(status, headers, seconds, tmp_path):
    def choose(asked, before):
        if len(server.asked) != 10:
            return Reply(body=completion("好"), delay=0.01)
        dated = formatdate(time.time() + 2, usegmt=True)
        sent = {name: dated if value == "date" else value for name, value in headers.items()}
        return Reply(status=status, body=completion("好"), headers=sent)

    with ChatServer(choose) as server:
        done = client(server, tmp_path, concurrency=4).complete_all(questions(60))
    assert all(one.text for one in done)
    shut = server.asked[9].at
    # Those that were under way when the limit was told.
    assert not seconds or sum(shut < asked.at < shut + seconds for asked in server.asked) <= 3


def test_a_limit_without_end_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(rate_limits, "LONGEST_HOLD", 0.2)
    with ChatServer(lambda asked, before: "normal" if before else error(429, "slow", retry_after="864000")) as server:
        done = client(server, tmp_path).complete_all(questions(3))
    assert all(one.text for one in done)


@pytest.mark.parametrize("headers", [{}, {"retry_after": "0.05"}])
def test_a_refusal_for_the_rate_costs_no_attempt_while_others_are_answered(headers, tmp_path):
    taken = Counter()

    def choose(asked, before):
        window = int(asked.at * 4)
        taken[window] += 1
        return "normal" if taken[window] <= 10 else error(429, "slow down", **headers)

    with ChatServer(choose) as server:
        done = client(server, tmp_path, concurrency=20, retries=1).complete_all(questions(50))
    assert all(one.text for one in done)
    assert max(one.attempts for one in done) > 2


CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
from pathlib import Path
from gemma_keras.config.sections import EndpointConfig
from gemma_keras.text.endpoint_client.answer_cache import AnswerCache
from gemma_keras.text.endpoint_client.client import ChatClient
url, cache = sys.argv[1:]
asking = ChatClient(EndpointConfig(url=url, model="m", concurrency=8), AnswerCache(Path(cache)))
system = {"role": "system", "content": "简短回答"}
asking.complete_all([[system, {"role": "user", "content": f"第{i}题"}] for i in range(400)])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_where_it_was(number, tmp_path):
    requests, ended = questions(400), []

    def choose(asked, before):
        # However late the signal comes, the child waits for the answers after the 200th.
        delay = 0.02 if ended or len(server.asked) <= 200 else 30.0
        return Reply(body=completion(answer_to(asked.body)), delay=delay)

    with ChatServer(choose) as server:
        child = subprocess.Popen([sys.executable, "-c", CHILD, server.url, str(tmp_path / "answers")], cwd=REPOSITORY)
        while len(server.asked) < 180 and child.poll() is None:
            time.sleep(0.01)
        os.kill(child.pid, number)
        assert child.wait() == -number
        ended.append(child.pid)
        stopped = len(server.asked)
        assert stopped < 400
        done = client(server, tmp_path).complete_all(requests)
        assert [one.text for one in done] == expected(requests)
        repeated = len(server.asked) - 400
        # Ctrl-C loses what was under way; kill -9 also the group that was not yet written.
        assert repeated <= 8 + (GROUP if number == signal.SIGKILL else 0)
        assert max(Counter(asked.text for asked in server.asked).values()) <= 2
        assert client(server, tmp_path).complete_all(requests) == [
            type(one)(key=one.key, text=one.text) for one in done
        ]


def test_inside_a_running_event_loop(tmp_path):
    import asyncio

    async def cell():
        return client(server, tmp_path).complete_all(questions(2))

    with ChatServer() as server:
        assert [one.text for one in asyncio.run(cell())] == expected(questions(2))


def test_progress_over_several_calls(tmp_path):
    lines = []
    with ChatServer() as server:
        asking = client(server, tmp_path, lines.append)
        asking.announce(20)
        asking.announce(10)
        asking.complete_all(questions(10))
        assert asking.progress.line().startswith("10 of 30 answered (0 from the cache), 0 failed")
        asking.complete_all(questions(20))
    assert len(lines) == 1 and lines[0].startswith("30 of 30 answered (10 from the cache)")
    assert lines[0].endswith("requests/s, 0:00:00 left")


@pytest.mark.parametrize("body", [reply({"messages": [{"content": ""}]}).body for reply in REPLIES.values()])
@pytest.mark.parametrize("status", [200, 204, 302, 400, 401, 429, 500, 599])
def test_any_body_with_any_status_has_an_outcome(body, status):
    outcome = judge(status, body)
    assert bool(outcome.text) != bool(outcome.reason)
    assert json.loads(body) and status < 300 if outcome.text else outcome.reason.isprintable()


def test_a_body_that_is_too_long_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("gemma_keras.text.endpoint_client.client.LONGEST_BODY", 10)
    with ChatServer() as server:
        (done,) = client(server, tmp_path, retries=1).complete_all(questions(1))
    assert done.reason == "ReadError: an answer of more than 10 bytes" and not done.text and done.attempts == 2
