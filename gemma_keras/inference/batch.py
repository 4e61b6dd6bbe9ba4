"""A running batch: samples join it, decode side by side, and leave it one by one.

Axes: B rows, P rows at work, T tokens, V vocabulary.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from keras_hub.models import GemmaBackbone

from gemma_keras import runtime
from gemma_keras.config.errors import UserError
from gemma_keras.inference import programs
from gemma_keras.inference.buckets import bucket, power_of_two, row_bucket, slot_bucket
from gemma_keras.inference.constraints import Matcher
from gemma_keras.inference.prefix_cache import PrefixCache
from gemma_keras.inference.programs import CHUNK, Chunk, Rows
from gemma_keras.inference.requests import Completion, Delta, Request, broken_logits
from gemma_keras.inference.sampling import SamplingRows, Tallies
from gemma_keras.inference.text_stream import TextStream
from gemma_keras.models.compute_plan import ComputePlan
from gemma_keras.models.forward import Params
from gemma_keras.models.kv_cache import KVCache

MOST_CLOCK = 1 << 30  # from here on, an empty batch begins anew, so that no lane reaches 2^31 steps
PREFILL_TOKENS = 512  # read in one call, of one prompt or of several of like lengths


@dataclasses.dataclass(eq=False, slots=True)
class Task:
    """One sample of a request under way."""

    request: Request
    number: int  # of the request in its call, for messages
    seed: int
    matcher: Matcher | None = None
    stream: TextStream | None = None
    tokens: list[int] = dataclasses.field(default_factory=list)
    log_probs: list[float] = dataclasses.field(default_factory=list)
    alternatives: list[list[tuple[int, float]]] = dataclasses.field(default_factory=list)
    completion: Completion | None = None
    error: UserError | None = None
    unread: deque[Delta] | None = None  # what `Engine.stream` has not handed on; None: nobody streams it

    @property
    def done(self) -> bool:
        return self.completion is not None or self.error is not None

    @property
    def positions(self) -> int:
        """Slots that its row needs."""
        return len(self.request.prompt) + self.request.sampling.max_new_tokens

    def end(self, reason: str, decode: Callable[[list[int]], str] | None) -> str:
        """Completes the task; returns the text that its stream held back."""
        rest, text = "", None
        if self.stream is not None:
            rest = self.stream.finish()
            text = self.stream.text
        elif decode is not None:
            text = decode(self.tokens)
        asked = self.request.log_probs
        self.completion = Completion(
            tokens=self.tokens, reason=reason, text=text, log_probs=None if asked is None else self.log_probs,
            alternatives=self.alternatives if asked else None,
        )  # fmt: skip
        return rest


class _Reading(NamedTuple):
    """A prompt, all but its last token, that a row with a `turn` takes; it has its first `start` tokens."""

    row: int
    start: int
    turn: int
    tokens: tuple[int, ...]

    @property
    def left(self) -> int:
        return len(self.tokens) - self.start


def divided_rows(rounded: Callable[[int], int], count: int, plan: ComputePlan) -> int:
    """Rows for `count` sequences, `rounded` up on each device of the mesh's data axis."""
    return plan.data_devices * rounded(-(-count // plan.data_devices))


class Batch:
    """Rows that decode together. With `stepwise`, a token at a time under the masks of their matchers.

    `params` is asked for at every call, so that a batch holds no weights. Sizes are rounded up (buckets.py), so that few
    programs are compiled; a batch grows while rows are running, and is sized anew when it is empty.
    """

    def __init__(
        self, backbone: GemmaBackbone, plan: ComputePlan, *, max_rows: int, cache_dtype: str,
        decode_text: Callable[[list[int]], str] | None, stepwise: bool = False,
    ):  # fmt: skip
        self.backbone, self.plan, self.stepwise = backbone, plan, stepwise
        self.max_rows, self.cache_dtype, self._decode_text = max_rows, cache_dtype, decode_text
        self.pending: deque[Task] = deque()
        self.tasks: list[Task | None] = []
        self._lane: Any = None  # a `Lane`, which each program takes and gives back; None before the first
        self._shape = (0, 0, 0)  # rows, slots, biases
        self._clock = 0  # that of the lane

    @property
    def busy(self) -> bool:
        """Whether anything is running or waits."""
        return bool(self.pending) or any(self.tasks)

    def cancel(self, task: Task) -> None:
        """Takes a task out, wherever it is."""
        if task in self.pending:
            self.pending.remove(task)
        if task in self.tasks:
            self._leave([self.tasks.index(task)])

    def abandon(self) -> None:
        """Ends all that runs or waits with an error, for whoever still looks at it."""
        for task in [*self.pending, *filter(None, self.tasks)]:
            task.error = UserError("the engine was reset by another call before this answer was complete; ask again.")

    def step(self, params: Params, prefixes: PrefixCache | None, steps: int) -> list[tuple[Task, Delta]]:
        """Lets waiting tasks in, then decodes up to `steps` tokens; returns what each task got."""
        self._let_in(params, prefixes)
        if not any(self.tasks):
            return []
        steps = 1 if self.stepwise else min(steps, CHUNK)
        asked = [
            task.request.log_probs for task in self.tasks if task is not None and task.request.log_probs is not None
        ]
        alternatives = None if not asked else power_of_two(max(asked)) if max(asked) else 0
        self._lane, chunk, every = programs.decode(
            params, self._lane, np.int32(steps), self._masks(), backbone=self.backbone, plan=self.plan,
            alternatives=alternatives,
        )  # fmt: skip
        return self._taken(jax.device_get(chunk), every)

    def read_prompts(
        self, params: Params, prefixes: PrefixCache | None, prompts: Sequence[Sequence[int]], copies: int
    ) -> KVCache:
        """A cache with all but the last token of each prompt in `copies` rows; the batch itself stays empty."""
        assert not self.busy
        rows = divided_rows(power_of_two, len(prompts) * copies, self.plan)
        self._shape = (rows, slot_bucket(max(map(len, prompts))), 0)
        self._lane = programs.empty_lane(self.backbone, self.plan, *self._shape, self.cache_dtype)
        self.tasks = [None] * rows
        leaders: dict[tuple[int, ...], int] = {}
        source: list[int] = []
        to: list[int] = []
        for number, prompt in enumerate(prompts):
            leader = leaders.setdefault(tuple(prompt), number * copies)
            own = range(number * copies, (number + 1) * copies)
            to += own
            source += [leader] * copies
        self._read(params, prefixes, leaders, lambda prompt: 0)
        self._copy(source, to)
        cache, self._lane, self.tasks = self._lane.cache, None, []
        return cache

    def _masks(self) -> np.ndarray | None:
        if not self.stepwise:
            return None
        bits = np.full((len(self.tasks), -(-self.backbone.architecture.vocabulary_size // 32)), -1, np.int32)
        for row, task in enumerate(self.tasks):
            if task is not None and task.matcher is not None:
                task.matcher.fill(bits[row])
        return bits

    def _taken(self, chunk: Chunk, every: jax.Array | None) -> list[tuple[Task, Delta]]:
        """Hands the tokens of a chunk to the tasks; rows whose task is done are free again.

        `every` f32[B, V]: the log-probabilities of all tokens, where one may be overruled.
        """
        self._clock = int(chunk.clock)
        progress, ended_here, broken = [], [], []
        for row, task in enumerate(self.tasks):
            if task is None:
                continue
            made = [int(token) for token in chunk.tokens[row] if token >= 0]
            tokens, text, ended = self._follow(task, row, made, bool(chunk.stopped[row]))
            self._note(task, chunk, row, made, tokens, every)
            if chunk.broken[row]:
                task.error = broken_logits(task.number, len(task.tokens))
                broken.append(row)
            elif ended:
                text += task.end(ended, self._decode_text)
            if task.done:
                self.tasks[row] = None
                if task.stream is not None or task.matcher is not None:
                    ended_here.append(row)
            delta = Delta(tokens, text, task.completion)
            progress.append((task, delta))
            if task.unread is not None:
                task.unread.append(delta)
        self._leave(ended_here)
        if broken:
            self._lane = programs.erase(self._lane, self._padded(broken), plan=self.plan)
        return progress

    def _note(
        self, task: Task, chunk: Chunk, row: int, made: list[int], tokens: list[int], every: jax.Array | None
    ) -> None:
        """Keeps the log-probabilities of `tokens`, of which the first may have taken the place of the one that was `made`."""
        asked, count = task.request.log_probs, len(tokens)
        if asked is not None and chunk.log_probs is not None:
            task.log_probs += chunk.log_probs[row, :count].tolist()
            if every is not None and tokens and tokens[0] != made[0]:
                task.log_probs[-1] = float(every[row, tokens[0]])
        if asked and chunk.top_ids is not None and chunk.top_log_probs is not None:
            ids, values = chunk.top_ids[row, :count, :asked], chunk.top_log_probs[row, :count, :asked]
            task.alternatives += [
                list(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)
            ]

    def _follow(self, task: Task, row: int, tokens: list[int], stopped: bool) -> tuple[list[int], str, str]:
        """Adds new tokens to a task; those that count, the text that is certain, and why the task ended, if it did."""
        if task.matcher is not None and tokens:
            taken = task.matcher.accept(tokens[0])
            if taken != tokens[0]:
                change = (np.int32(row), np.int32(tokens[0]), np.int32(taken))
                self._lane = programs.overrule(self._lane, *change, plan=self.plan)
                tokens = [taken]
            if taken in task.request.stop_ids:
                tokens, stopped = [], True
            stopped = stopped or task.matcher.finished
        text = ""
        if task.stream is not None:
            for count, token in enumerate(tokens, 1):
                text += task.stream.push([token])
                if task.stream.stopped:
                    task.tokens += tokens[:count]
                    return tokens[:count], text, "stop_string"
        task.tokens += tokens
        if stopped:
            return tokens, text, "stop"
        if len(task.tokens) < task.request.sampling.max_new_tokens:
            return tokens, text, ""
        # What is constrained is whole at its limit, too.
        return tokens, text, "length" if task.matcher is None else "stop"

    def _leave(self, rows: Sequence[int]) -> None:
        """Frees rows, and stops those that the device would let go on."""
        if not rows:
            return
        for row in rows:
            self.tasks[row] = None
        self._lane = programs.release(self._lane, self._padded(rows), plan=self.plan)

    def _padded(self, rows: Sequence[int]) -> np.ndarray:
        """Numbers of rows, filled up with rows that the lane does not have."""
        at = np.full(power_of_two(len(rows)), len(self.tasks), np.int32)
        at[: len(rows)] = rows
        return at

    def _let_in(self, params: Params, prefixes: PrefixCache | None) -> None:
        while self.pending:
            self._make_room()
            free = [row for row, task in enumerate(self.tasks) if task is None]
            free = free[: max(0, self.max_rows - (len(self.tasks) - len(free)))]
            if not free:
                return
            if not self._admit(params, prefixes, free):
                return

    def _make_room(self) -> None:
        """As many rows and slots as the waiting tasks want, as far as `max_rows` goes."""
        running = sum(task is not None for task in self.tasks)
        wanted = min(self.max_rows, running + len(self.pending))
        rows = divided_rows(row_bucket, wanted, self.plan)
        soon = list(self.pending)[: rows - running]
        slots = slot_bucket(max(task.positions for task in [*soon, *filter(None, self.tasks)]))
        if not running or self._lane is None:
            biases = power_of_two(max(len(task.request.logit_bias) for task in self.pending)) if self._biased() else 0
            shape = (rows, slots, biases)
            if self._lane is None or shape != self._shape or self._clock > MOST_CLOCK:
                runtime.limit_programs()
                self._lane = programs.empty_lane(self.backbone, self.plan, *shape, self.cache_dtype)
                self._shape, self._clock = shape, 0
            self.tasks = [None] * rows
            return
        rows, slots = max(rows, self._shape[0]), max(slots, self._shape[1])
        if (rows, slots) != self._shape[:2]:
            runtime.limit_programs()
            self._lane = programs.resize(self._lane, backbone=self.backbone, rows=rows, slots=slots, plan=self.plan)
            self.tasks += [None] * (rows - len(self.tasks))
            self._shape = (rows, slots, self._shape[2])

    def _biased(self) -> bool:
        return any(task.request.logit_bias for task in self.pending)

    def _admit(self, params: Params, prefixes: PrefixCache | None, free: list[int]) -> int:
        """One wave of waiting tasks into free rows, and their number: each prompt is read once, whoever has it.

        A prompt whose beginning is just being read for another one waits for the next wave, which finds it kept.
        """
        leaders: dict[tuple[int, ...], int] = {}
        entering: list[tuple[int, Task]] = []
        copies: list[tuple[int, int]] = []
        under_way: set[bytes] = set()
        later: list[Task] = []
        while self.pending and len(entering) < len(free):
            task = self.pending.popleft()
            row, prompt = free[len(entering)], tuple(task.request.prompt)
            if len(task.request.logit_bias) > self._shape[2]:
                later.append(task)  # until the batch is empty; so that it gets there, nobody overtakes
                break
            if task.positions > self._shape[1]:
                later.append(task)  # until there is room, which is made for the first that wait
                continue
            if prompt in leaders:
                copies.append((leaders[prompt], row))
            else:
                keys = prefixes.keys(prompt) if prefixes is not None else []
                unknown = keys[prefixes.known(keys) :][:1] if prefixes is not None else []
                if under_way.intersection(unknown):
                    later.append(task)
                    continue
                under_way.update(unknown)
                leaders[prompt] = row
            entering.append((row, task))
            self.tasks[row] = task
        self.pending.extendleft(reversed(later))
        self._read(params, prefixes, leaders, self._turn)
        self._copy([source for source, _ in copies], [row for _, row in copies])
        if entering:
            at, rows = self._entries(entering)
            self._lane = programs.admit(self._lane, at, rows, plan=self.plan)
        return len(entering)

    def _copy(self, source: Sequence[int], to: Sequence[int]) -> None:
        """Copies the cache of rows."""
        moved = [(old, new) for old, new in zip(source, to, strict=True) if old != new]
        if moved:
            padding = [(0, len(self.tasks))] * (power_of_two(len(moved)) - len(moved))
            old, new = np.array(moved + padding, np.int32).T
            self._lane = programs.copy_rows(self._lane, old, new, plan=self.plan)

    def _turn(self, prompt: Sequence[int]) -> int:
        """What brings the slot of a prompt's last token to where the next step writes."""
        return self._clock - (len(prompt) - 1)

    def _read(
        self,
        params: Params,
        prefixes: PrefixCache | None,
        leaders: dict[tuple[int, ...], int],
        turn: Callable[[Sequence[int]], int],
    ) -> None:
        """Puts prompts, all but their last tokens, into the cache of their rows."""
        work: list[_Reading] = []
        for prompt, row in leaders.items():
            start = 0
            if prefixes is not None:
                self._lane, start = prefixes.restore(self._lane, row, prefixes.keys(prompt), turn(prompt))
            work.append(_Reading(row, start, turn(prompt), prompt[:-1]))
        while work := [reading for reading in work if reading.left > 0]:
            # Pieces of like lengths are read together, in groups of a power of two, so that few rows are padding.
            work.sort(key=lambda reading: reading.left, reverse=True)
            size = bucket(min(PREFILL_TOKENS, work[0].left))
            fitting = power_of_two(min(len(work), PREFILL_TOKENS // size) + 1) // 2
            count = max(fitting, self.plan.data_devices)
            self._prefill(params, work[:count])
            rest = [reading._replace(start=reading.start + PREFILL_TOKENS) for reading in work[:count]]
            work = work[count:] + rest
        if prefixes is not None:
            for prompt, row in leaders.items():
                prefixes.save(self._lane, row, prefixes.keys(prompt), len(prompt) - 1, turn(prompt))

    def _prefill(self, params: Params, group: Sequence[_Reading]) -> None:
        pieces = [reading.tokens[reading.start : reading.start + PREFILL_TOKENS] for reading in group]
        size = divided_rows(power_of_two, len(group), self.plan)
        tokens = np.zeros((size, bucket(max(map(len, pieces)))), np.int32)
        start, count, turn = np.zeros((3, size), np.int32)
        at = np.full(size, len(self.tasks), np.int32)
        for index, (reading, piece) in enumerate(zip(group, pieces, strict=True)):
            tokens[index, : len(piece)] = piece
            at[index], start[index], count[index], turn[index] = reading.row, reading.start, len(piece), reading.turn
        earlier = int(start.max())
        prefix = min(bucket(earlier), self._shape[1]) if earlier else 0
        self._lane = programs.prefill(
            params, self._lane, tokens, start, count, at, turn, backbone=self.backbone, plan=self.plan, prefix=prefix
        )

    def _entries(self, entering: Sequence[tuple[int, Task]]) -> tuple[np.ndarray, Rows]:
        """Where to put the rows' values, and the values [P, ...]."""
        size, vocabulary = power_of_two(len(entering)), self.backbone.architecture.vocabulary_size
        at = np.full(size, len(self.tasks), np.int32)
        length, turn, last, limit = np.zeros((4, size), np.int32)
        prompt, stops = np.zeros((2, size, vocabulary), bool)
        ids = np.full((size, self._shape[2]), -1, np.int32)
        values = np.zeros((size, self._shape[2]), np.float32)
        for index, (row, task) in enumerate(entering):
            request = task.request
            at[index], length[index], last[index] = row, len(request.prompt) - 1, request.prompt[-1]
            turn[index] = self._turn(request.prompt)
            limit[index] = request.sampling.max_new_tokens
            prompt[index, list(request.prompt)] = True
            stops[index, list(request.stop_ids)] = True
            ids[index, : len(request.logit_bias)] = list(request.logit_bias)
            values[index, : len(request.logit_bias)] = list(request.logit_bias.values())
        tasks = [task for _, task in entering]
        tasks += [tasks[-1]] * (size - len(tasks))
        sampling = SamplingRows.of([task.request.sampling for task in tasks])
        sampling = sampling._replace(seed=np.array([task.seed for task in tasks], np.uint32))
        rows: Any = Rows(
            length=length, turn=turn, last=last, step=np.zeros(size, np.int32), limit=limit, running=np.ones(size, bool),
            tallies=Tallies(prompt, np.zeros((size, vocabulary), np.int32)), stops=stops, bias_ids=ids, bias_values=values,
            sampling=sampling,
        )  # fmt: skip
        return at, rows
