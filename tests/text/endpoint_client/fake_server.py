"""A small OpenAI-compatible server on this machine that answers well, badly or not at all, as it is told.

For a look by hand:  python -m tests.text.endpoint_client.fake_server --port 8000 --reply normal --delay 0.02
"""

import argparse
import asyncio
import hashlib
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

TRADES = ("语文教师", "历史学者", "健康顾问", "编程助手", "翻译", "旅行向导", "数据分析师", "写作教练")
MANNERS = ("耐心细致", "简明扼要", "轻松亲切", "严谨客观", "生动有趣")
HABITS = ("必要时举例说明", "先说结论再说理由", "遇到不确定的内容如实说明", "分步骤写清楚", "避免使用生僻的词语")


@dataclass(kw_only=True)
class Reply:
    """What the server sends; `shape` says how: whole, truncated, dripped (a byte at a time), reset or hang."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    shape: str = "whole"


@dataclass(kw_only=True)
class Asked:
    """One request as it came."""

    at: float
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def text(self) -> str:
        return self.body["messages"][-1]["content"]


def answer_to(body: dict[str, Any]) -> str:
    """An answer that follows from the request alone."""
    number = int.from_bytes(hashlib.sha256(json.dumps(body["messages"]).encode()).digest()[:8])
    trade, manner, habit = (words[number // 97**i % len(words)] for i, words in enumerate((TRADES, MANNERS, HABITS)))
    return f"你是一位{manner}的{trade}，请用中文帮助来访者，{habit}。"


def completion(text: Any, finish: str = "stop") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
    return json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def error(status: int, message: str, code: str = "", **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status=status, body=json.dumps({"error": {"message": message, "code": code}}).encode(), headers=named)


REPLIES: dict[str, Callable[[dict[str, Any]], Reply]] = {
    "normal": lambda body: Reply(body=completion(answer_to(body))),
    "slow": lambda body: Reply(body=completion(answer_to(body)), delay=0.2),
    "error_500": lambda body: error(500, "internal error"),
    "error_503": lambda body: error(503, "overloaded", retry_after="0.05"),
    "limited": lambda body: error(429, "too many requests", "rate_limit_exceeded", retry_after="0.1"),
    "truncated": lambda body: Reply(body=completion(answer_to(body)), shape="truncated"),
    "html": lambda body: Reply(body=b"<html><body>Bad gateway</body></html>", status=502),
    "page": lambda body: Reply(body=b"<html><body>Welcome</body></html>"),
    "half_json": lambda body: Reply(body=completion(answer_to(body))[:40]),
    "deep_json": lambda body: Reply(body=b"[" * 100_000),
    "wrong_schema": lambda body: Reply(body=b'{"choices": {"message": "hello"}}'),
    "no_choices": lambda body: Reply(body=b'{"choices": []}'),
    "a_list": lambda body: Reply(body=b"[1, 2, 3]"),
    "empty": lambda body: Reply(body=completion("  ")),
    "null": lambda body: Reply(body=completion(None)),
    "surrogate": lambda body: Reply(body=completion("你好，\ud83d")),
    "binary": lambda body: Reply(body=bytes(range(256)) * 4),
    "not_gzip": lambda body: Reply(body=completion("你好"), headers={"Content-Encoding": "gzip"}),
    "nothing": lambda body: Reply(),
    "cut": lambda body: Reply(body=completion(answer_to(body)[:6], "length")),
    "filtered": lambda body: Reply(body=completion("", "content_filter")),
    "too_long": lambda body: error(400, "the prompt has 9000 tokens, more than 8192", "context_length_exceeded"),
    "reset": lambda body: Reply(shape="reset"),
    "hang": lambda body: Reply(shape="hang"),
    "drip": lambda body: Reply(body=completion("慢" * 2000), shape="drip"),
}
"""Replies by name."""

UNUSABLE = tuple(
    "error_500 error_503 limited truncated html page half_json deep_json wrong_schema no_choices a_list empty null surrogate "
    "binary not_gzip nothing cut reset hang drip".split()
)
"""Those after which a client should try again."""


class ChatServer:
    """The server, in a thread of its own, for the length of a `with` block.

    Args:
        choose: gets the request and how often it came before, and gives a reply or the name of one.

    Attributes:
        asked: every request, in order.
        most_at_once: the largest number of requests that were under way at one time.
    """

    def __init__(self, choose: Callable[[Asked, int], Reply | str] = lambda asked, before: "normal", port: int = 0):
        self._choose, self._port = choose, port
        self.asked: list[Asked] = []
        self.most_at_once = self._at_once = 0
        self._before: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> "ChatServer":
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", self._port, backlog=512)
        server = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        self._port = server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *error: object) -> None:
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._serve_one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        assert head[0] == "POST /v1/chat/completions HTTP/1.1", head[0]
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            asked = Asked(at=time.monotonic(), body=body, headers=headers)
            self.asked.append(asked)
            reply = self._choose(asked, self._before[asked.text])
            self._before[asked.text] += 1
            reply = REPLIES[reply](body) if isinstance(reply, str) else reply
            await asyncio.sleep(reply.delay)
        finally:
            self._at_once -= 1
        return await _send(reply, reader, writer)


async def _send(reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Sends a reply; whether the connection stays open."""
    if reply.shape == "reset":
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        return False
    if reply.shape == "hang":
        await reader.read()
        return False
    fields = {"Content-Type": "application/json", "Content-Length": str(len(reply.body))} | reply.headers
    writer.write(f"HTTP/1.1 {reply.status} X\r\n".encode())
    writer.write("".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode() + b"\r\n")
    if reply.shape == "drip":
        for byte in reply.body:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.01)
    writer.write(reply.body[: len(reply.body) // 2] if reply.shape == "truncated" else reply.body)
    await writer.drain()
    return reply.shape == "whole"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--reply", default="normal", choices=[*REPLIES, "mixture"], help="mixture: some replies fail")
    parser.add_argument("--share", type=float, default=0.2, help="of failing replies in the mixture")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before an answer")
    options = parser.parse_args()

    def choose(asked: Asked, before: int) -> Reply:
        failing = options.reply == "mixture" and random.random() < options.share
        name = random.choice(UNUSABLE) if failing else "normal" if options.reply == "mixture" else options.reply
        reply = REPLIES[name](asked.body)
        reply.delay += options.delay
        return reply

    with ChatServer(choose, options.port) as server:
        print(f"serving at {server.url} until Ctrl-C", flush=True)
        try:
            while True:
                time.sleep(5)
                print(f"{len(server.asked)} requests, {server.most_at_once} at most at once", flush=True)
        except KeyboardInterrupt:
            print(f"{len(server.asked)} requests, {server.most_at_once} at most at once")


if __name__ == "__main__":
    main()
