"""Several processes that train together: one writes, all read, and all stop at the same step.

JAX ends a process without a sentence, by abort, where another one does not come in time. So all meet here first, over plain
sockets on the coordinator's port, and what is wrong can be told.
"""

import atexit
import contextlib
import itertools
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # its key-value store, which has no public name
from jax.experimental import multihost_utils

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import ParallelConfig
from gemma_keras.data.progress import print_progress

MEETING_SECONDS = 300.0  # hosts of a cluster may start minutes apart
LEAVING_SECONDS = 20  # that a finished process waits for the others
_LINGER_SECONDS = 2.0  # with process 0 the meeting place goes, and JAX aborts whoever has not left it
_RETRY_SECONDS = 0.5
_GO_ON = "go on"
_REPORT = re.compile(r"gemma_keras process (\d{1,9}) of (\d{1,9})")
_LAST_STEPS = "gemma_keras/last_steps"
# What JAX says, in several kinds of exception, when another process is gone.
_LOST = ("Gloo", "gloo", "Connection closed by peer", "Connection reset by peer", "coordination service", "heartbeat")

R = TypeVar("R")


def join(config: ParallelConfig, seconds: float = MEETING_SECONDS) -> None:
    """Makes this process one of `parallel.processes`; does nothing for a single one. Must run before JAX finds devices.

    Args:
        config: who the processes are, and where the first of them listens.
        seconds: to wait for the others.

    Raises:
        UserError: the others do not come, or two processes have one number, or process 0 is not at that address.
    """
    if config.processes == 1 or jax.distributed.is_initialized():
        return
    print_progress(f"process {config.process} of {config.processes} waits for the others")
    _meet(config, seconds)
    try:
        jax.distributed.initialize(
            config.coordinator, config.processes, config.process, initialization_timeout=int(MEETING_SECONDS),
            shutdown_timeout_seconds=LEAVING_SECONDS,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise _not_joined(config, str(error).splitlines()[0]) from error


def _not_joined(config: ParallelConfig, reason: str) -> UserError:
    return UserError(
        f"process {config.process} of {config.processes} cannot join the others at config.parallel.coordinator="
        f"{config.coordinator} ({reason}); start all processes with the same address, that of process 0, each with its own "
        "config.parallel.process."
    )


def _meet(config: ParallelConfig, seconds: float) -> None:
    """Returns when all processes are there; the first one counts them."""
    host, _, port = config.coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise _not_joined(config, "it has not the form host:port")
    deadline = time.monotonic() + seconds
    try:
        if config.process == 0:
            reason = _receive(config, int(port), deadline)
        else:
            reason = _report(config, (host.strip("[]"), int(port)), deadline)
    except OSError as error:
        raise _not_joined(config, error.strerror or str(error)) from error
    if reason:
        raise _not_joined(config, reason)


def _receive(config: ParallelConfig, port: int, deadline: float) -> str:
    """Process 0: hears each of the others once, then tells all of them whether they may go on; returns why not."""
    missing, reason = set(range(1, config.processes)), ""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", port), family=family, dualstack_ipv6=dual))
        waiting = []
        while missing and not reason:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection = stack.enter_context(server.accept()[0])
            except TimeoutError:
                reason = f"no word from process {', '.join(map(str, sorted(missing)))} in time"
                break
            report = _REPORT.fullmatch(_hear(connection, 5.0))
            if not report:
                continue  # something else that looked in at this port
            waiting.append(connection)
            number, processes = map(int, report.groups())
            if processes != config.processes:
                reason = f"process {number} was started as one of {processes}, process 0 as one of {config.processes}"
            elif number not in missing:
                reason = f"two processes have the number {number}"
            missing.discard(number)
        for connection in waiting:
            with contextlib.suppress(OSError):
                connection.sendall(f"{reason or _GO_ON}\n".encode())
                connection.recv(1)  # they hang up first, so that the port is free at once
    return reason


def _report(config: ParallelConfig, address: tuple[str, int], deadline: float) -> str:
    """The others: tell process 0 who they are, trying until it is there; returns why they may not go on."""
    while True:
        left = deadline - time.monotonic()
        try:
            connection = socket.create_connection(address, timeout=max(0.01, left))
            break
        except OSError as error:
            if left < _RETRY_SECONDS:
                return f"nobody listens there: {error.strerror or error}"
            time.sleep(_RETRY_SECONDS)
    with connection:
        connection.sendall(f"gemma_keras process {config.process} of {config.processes}\n".encode())
        answer = _hear(connection, deadline - time.monotonic())
    return "" if answer == _GO_ON else answer or "process 0 gave no answer in time"


def _hear(connection: socket.socket, seconds: float) -> str:
    """A line without its end; empty where none comes."""
    connection.settimeout(max(0.01, seconds))
    with contextlib.suppress(OSError), connection.makefile(encoding="utf-8", errors="replace") as lines:
        return lines.readline(4096).rstrip("\n")
    return ""


@contextlib.contextmanager
def telling_of_lost_ones() -> Iterator[None]:
    """Ends what it stands around with a sentence, not a traceback, when another process of its run is gone.

    After any failure this process, when its program ends, exits with status 1 and without waiting for the others.
    """
    try:
        yield
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        atexit.register(_leave)  # before JAX's own, which would wait for the others in vain and then abort
        lost = isinstance(error, RuntimeError | ValueError) and any(word in str(error) for word in _LOST)
        if isinstance(error, UserError) or not lost:
            raise
        raise UserError(
            f"another process of this run has ended, so process {jax.process_index()} cannot go on; see what that one "
            "said, and start all of them again: they go on from the last checkpoint."
        ) from error


def _leave() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    if is_writer():
        time.sleep(_LINGER_SECONDS)
    os._exit(1)


def is_writer() -> bool:
    """Whether this process writes the files of the workdir."""
    return jax.process_index() == 0


def by_writer(make: Callable[[], R]) -> R | None:
    """`make()` in the process that writes, None in the others, which wait for it; all have to ask.

    Raises:
        UserError: in the others, when the first one failed.
    """
    made, failed = None, True
    try:
        made = make() if is_writer() else None
        failed = False
    finally:
        failed = any_of_all(failed)
    if failed:
        raise UserError("process 0 could not go on and says why; mend that, and start all processes again.")
    return made


def writer_first(make: Callable[[], R]) -> R:
    """`make()` of the first process, then of the others, which find what it wrote."""
    made = by_writer(make)
    return make() if made is None else made


def any_of_all(flag: bool) -> bool:
    """Whether the flag is set in any process; all of them have to ask."""
    return bool(multihost_utils.process_allgather(np.bool_(flag)).any())


@contextlib.contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM joins the list, so that the current step finishes and is saved; the second one acts at once."""
    came: list[int] = []
    previous: dict[int, Any] = {}

    def handle(number: int, frame) -> None:
        came.append(number)
        print_progress("stopping after this step; once more to stop at once")
        signal.signal(number, previous[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, handle)
    try:
        yield came
    finally:
        for handled, handler in previous.items():
            signal.signal(handled, handler)


def stopping_together(asked: Callable[[], bool]) -> Callable[[], bool]:
    """A function to call after every step, which says to all processes after the same one that they stop.

    Whoever is asked to, notes on the coordination service that the next step is the last one. No process can end that step
    before this one has begun it, since they compute it together: so all have read the note by then.

    Args:
        asked: whether this process is to stop.
    """
    if jax.process_count() == 1:
        return asked
    client, steps = distributed.global_state.client, itertools.count(1)

    def reached() -> bool:
        step = next(steps)
        noted = [int(last) for _, last in client.key_value_dir_get(_LAST_STEPS)]
        if not noted and asked():
            client.key_value_set(f"{_LAST_STEPS}/{jax.process_index()}", str(step + 1))
        return bool(noted) and step >= min(noted)

    return reached


def mean_of_all(number: float) -> float:
    """The mean of every process's number; all of them have to ask."""
    return float(multihost_utils.process_allgather(np.float32(number)).mean())


def union_of_all(numbers: list[int]) -> list[int]:
    """The numbers that any process has, sorted, each once; all of them have to ask."""
    most = int(multihost_utils.process_allgather(np.int32(len(numbers))).max())
    padded = np.full(most, -1, np.int32)
    padded[: len(numbers)] = numbers
    gathered = np.unique(multihost_utils.process_allgather(padded))
    return gathered[gathered >= 0].tolist()
