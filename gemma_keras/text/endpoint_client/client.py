"""The one client of OpenAI-compatible endpoints: many requests at once, each tried until it is answered or given up."""

import asyncio
import datetime
import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import httpx2
import pydantic
from anyio.from_thread import start_blocking_portal

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import EndpointConfig
from gemma_keras.text.endpoint_client.answer_cache import AnswerCache, CachedAnswer
from gemma_keras.text.endpoint_client.outcome import Outcome, judge
from gemma_keras.text.endpoint_client.rate_limits import RateGate

LONGEST_BACKOFF = 30.0
LONGEST_BODY = 1 << 24
COMMIT_SECONDS, PROGRESS_SECONDS = 1, 5
PATIENCE = 120.0
"""Seconds without any answer after which refusals for the rate count as attempts."""

ChatMessages = Sequence[Mapping[str, str]]
"""Messages `{"role": "system" | "user" | "assistant", "content": str}`."""

Check = Callable[[int, str], str]
"""Gets the index of a request and its answer, and says why that will not do, or ""."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointAnswer:
    """What became of a request.

    Attributes:
        key: `request_key` of it.
        text: the answer; empty where there is none.
        reason: why there is none.
        attempts: how often it was sent; 0: the answer was in the cache.
    """

    key: str
    text: str = ""
    reason: str = ""
    attempts: int = 0


@dataclass(slots=True, kw_only=True)
class EndpointProgress:
    """Counts over the life of a client. `total` is what will be asked for, where that is known; tokens are those used now."""

    total: int = 0
    calls: int = 0
    answered: int = 0
    cached: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def line(self) -> str:
        """The counts, the rate and the time left in one line."""
        done = self.answered + self.failed
        rate = done / self.seconds if self.seconds else 0.0
        left = max(0, self.total - done - self.cached)
        eta = int(left / rate) if rate else 0
        ending = f"{datetime.timedelta(seconds=eta)} left" if rate or not left else "time left unknown"
        return (
            f"{self.answered + self.cached} of {self.total} answered ({self.cached} from the cache), {self.failed} failed; "
            f"{self.prompt_tokens} prompt and {self.completion_tokens} completion tokens; {rate:.1f} requests/s, {ending}"
        )


class ChatClient:
    """Asks one endpoint, `POST {url}/chat/completions`, with at most `endpoint.concurrency` requests under way.

    Args:
        endpoint: whom to ask, and how. Its key never appears in a message, a reason or a file.
        cache: where answers are looked up first and kept as they come.
        report: takes a line on the progress every few seconds and at the end.
        backoff: seconds before the second attempt at most; twice as many before each further one.

    Raises:
        UserError: the URL is none, or the key is no text that fits into a header.
    """

    def __init__(
        self,
        endpoint: EndpointConfig,
        cache: AnswerCache,
        *,
        report: Callable[[str], None] = lambda line: None,
        backoff: float = 0.5,
    ) -> None:
        self.endpoint, self.cache, self.progress = endpoint, cache, EndpointProgress()
        self._report, self._backoff = report, backoff
        self._announced = self._asked = 0
        self._key = os.environ.get(endpoint.key_variable, "").strip()
        self._gate = RateGate(endpoint.max_tokens)
        self._heard = self._answers = False
        self._in_vain = 0
        self._answered_at = 0.0
        self._told = time.monotonic()
        try:
            url = str(pydantic.TypeAdapter(pydantic.HttpUrl).validate_python(endpoint.url))
        except pydantic.ValidationError:
            raise UserError(
                f"the endpoint's url is {endpoint.url!r}; give one such as http://localhost:8000/v1"
            ) from None
        self._url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(f"the API key in ${endpoint.key_variable} holds characters that no key has; set it anew")

    def announce(self, total: int) -> None:
        """Lets the progress know that `total` more requests will come, over any number of calls."""
        self._announced += total

    def look_up(self, request: ChatMessages, check: Callable[[str], str]) -> tuple[str, CachedAnswer | None]:
        """The key of a request and, where the cache has an answer that passes `check`, this answer."""
        key = request_key(self.endpoint, request)
        answer = self.cache.get(key)
        return key, answer if answer and not check(answer.text) else None

    def complete_all(
        self, requests: Sequence[ChatMessages], check: Check = lambda index, text: ""
    ) -> list[EndpointAnswer]:
        """What became of each request, in their order; of equal ones, one is sent.

        Args:
            requests: the messages of each.
            check: an answer that does not pass it counts as none, and is asked for again.

        Raises:
            UserError: the endpoint cannot be reached, answers nothing at all, or refuses what no repetition mends
                (key, model, address); the cache cannot be written. Answers so far are kept, also on Ctrl-C.
        """
        results: dict[str, EndpointAnswer] = {}
        todo: dict[str, int] = {}
        keys = []
        for index, request in enumerate(requests):
            key, answer = self.look_up(request, partial(check, index))
            keys.append(key)
            if answer:
                results[key] = EndpointAnswer(key=key, text=answer.text)
            else:
                todo.setdefault(key, index)
        self.progress.cached += len(keys) - len(todo)
        self._asked += len(keys)
        self.progress.total = max(self._announced, self._asked)
        if todo:
            # A thread of its own, as that of a notebook runs an event loop already.
            with start_blocking_portal() as portal:
                work = portal.start_task_soon(self._ask_all, todo, requests, check, results)
                try:
                    work.result()
                except BaseException:
                    work.cancel()
                    raise
        return [results[key] for key in keys]

    async def _ask_all(
        self, todo: dict[str, int], requests: Sequence[ChatMessages], check: Check, results: dict[str, EndpointAnswer]
    ) -> None:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        workers = min(self.endpoint.concurrency, len(todo))
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=workers)
        queue = iter(todo.items())
        self._answered_at = time.monotonic()

        async def work() -> None:
            for key, index in queue:
                results[key] = await self._ask(http, key, requests[index], partial(check, index))

        try:
            async with (
                httpx2.AsyncClient(headers=headers, timeout=self.endpoint.timeout, limits=limits) as http,
                asyncio.TaskGroup() as group,
            ):
                ticker = group.create_task(self._tick())
                await asyncio.wait([group.create_task(work()) for _ in range(workers)])
                ticker.cancel()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self.cache.commit()
            self._tell(self._asked >= self._announced)
        if not self._heard:
            raise self._stopped(results[next(iter(todo))].reason)

    async def _tick(self) -> None:
        started, before = time.monotonic(), self.progress.seconds
        try:
            while True:
                await asyncio.sleep(COMMIT_SECONDS)
                self.cache.commit()
                self.progress.seconds = before + time.monotonic() - started
                self._tell()
        finally:
            self.progress.seconds = before + time.monotonic() - started

    def _tell(self, finished: bool = False) -> None:
        if finished or time.monotonic() - self._told >= PROGRESS_SECONDS:
            self._told = time.monotonic()
            self._report(self.progress.line())

    async def _ask(
        self, http: httpx2.AsyncClient, key: str, request: ChatMessages, check: Callable[[str], str]
    ) -> EndpointAnswer:
        body = json.dumps(
            {
                "model": self.endpoint.model,
                "messages": list(request),
                "temperature": self.endpoint.temperature,
                "max_tokens": self.endpoint.max_tokens,
            }
        ).encode()
        progress, attempts, charged = self.progress, 0, 0
        tokens = [0, 0]
        while True:
            await self._gate.wait()
            attempts += 1
            outcome = await self._attempt(http, body)
            tokens = [old + new for old, new in zip(tokens, outcome.tokens)]
            reason = outcome.reason or check(outcome.text)
            if not reason:
                progress.answered += 1
                self._answered_at = time.monotonic()
                self.cache.put(key, CachedAnswer(outcome.text, *tokens))
                break
            # A refusal for the rate says nothing against this request while others get their answers.
            charged += outcome.status != 429 or time.monotonic() - self._answered_at > PATIENCE
            if not outcome.retry or charged > self.endpoint.retries:
                progress.failed += 1
                self._give_up(outcome)
                break
            await asyncio.sleep(random.uniform(0, min(LONGEST_BACKOFF, self._backoff * 2 ** min(attempts - 1, 10))))
        return EndpointAnswer(key=key, text="" if reason else outcome.text, reason=reason, attempts=attempts)

    async def _attempt(self, http: httpx2.AsyncClient, body: bytes) -> Outcome:
        self.progress.calls += 1
        seconds = self.endpoint.timeout
        try:
            # The library's own limits are for each read: a server that drips bytes would never come to its end.
            async with asyncio.timeout(seconds), http.stream("POST", self._url, content=body) as response:
                self._heard = True
                self._gate.heed(response.status_code, response.headers)
                content = b""
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > LONGEST_BODY:
                        raise httpx2.ReadError(f"an answer of more than {LONGEST_BODY} bytes")
            if self._key and not response.is_success:
                content = content.replace(self._key.encode(), b"***")
            outcome = judge(response.status_code, content)
        except (TimeoutError, httpx2.TimeoutException) as error:
            self._heard |= not isinstance(error, httpx2.ConnectTimeout)
            outcome = Outcome(reason=f"no complete answer within {seconds:g} s")
        except httpx2.HTTPError as error:
            self._heard |= not isinstance(error, httpx2.ConnectError)
            outcome = Outcome(reason=f"{type(error).__name__}: {error}".removesuffix(": "))
        if self._key and self._key in outcome.reason:
            outcome = replace(outcome, reason=outcome.reason.replace(self._key, "***"))
        if outcome.fatal:
            raise self._stopped(outcome.reason)
        self._answers |= not outcome.reason
        self.progress.prompt_tokens += outcome.tokens[0]
        self.progress.completion_tokens += outcome.tokens[1]
        return outcome

    def _give_up(self, outcome: Outcome) -> None:
        """Ends the run when nothing was answered so far; what the server declines for good counts only while it never did."""
        if self._answers or (not outcome.retry and self.progress.cached):
            return
        self._in_vain += 1
        if self._in_vain >= max(3, self.endpoint.concurrency):
            raise self._stopped(outcome.reason)

    def _stopped(self, reason: str) -> UserError:
        url = str(httpx2.URL(self._url).copy_with(userinfo=b"", query=None))
        return UserError(
            f"the endpoint {url} gives no answers ({reason}); check that it runs, its url, the model "
            f"{self.endpoint.model!r} and the key in ${self.endpoint.key_variable}"
        )


def request_key(endpoint: EndpointConfig, request: ChatMessages) -> str:
    """SHA-256, in hex, of all that an answer depends on: model, messages, temperature and max_tokens."""
    parts = [endpoint.model, list(map(dict, request)), endpoint.temperature, endpoint.max_tokens]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
