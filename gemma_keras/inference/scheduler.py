"""Rows that decode side by side: sequences wait, join, go on a chunk at a time, and leave one by one.

Axes: B rows, P rows at work, V vocabulary.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from keras_hub.models import Backbone

from gemma_keras import runtime
from gemma_keras.config.errors import UserError
from gemma_keras.inference.admission import row_values
from gemma_keras.inference.buckets import power_of_two, row_bucket, slot_bucket
from gemma_keras.inference.decode import CHUNK, Chunk, decode
from gemma_keras.inference.decode_state import (
    admit,
    copied,
    empty_state,
    erase,
    overrule,
    release,
    resize,
    row_numbers,
)
from gemma_keras.inference.delivery import INTERRUPTED, ActiveSequence, Overruled, deliver
from gemma_keras.inference.prefill import Prompt, PromptReader, divided_rows
from gemma_keras.inference.prefix_cache import PrefixCache
from gemma_keras.models.forward import Params
from gemma_keras.parallel.plan import ComputePlan

MOST_CLOCK = 1 << 30  # from here on, an empty batch begins anew, so that no clock reaches 2^31 steps


class Scheduler:
    """Rows that decode together. With `stepwise`, a token at a time under the masks of their matchers.

    `params` is asked for at every call, so that a scheduler holds no weights. Sizes are rounded up (buckets.py), so that few
    programs are compiled; rows and slots grow while sequences run, and are chosen anew when none does.
    """

    def __init__(
        self, backbone: Backbone, plan: ComputePlan, *, max_rows: int, cache_dtype: str, stepwise: bool = False
    ):
        self.backbone, self.plan, self.stepwise = backbone, plan, stepwise
        self.max_rows, self.cache_dtype = max_rows, cache_dtype
        self.pending: deque[ActiveSequence] = deque()
        self._expected: list[ActiveSequence] = []  # waiting ones that room is being made for
        self.sequences: list[ActiveSequence | None] = []  # of each row
        self._reader = PromptReader(backbone, plan)
        self._state: Any = None  # a `DecodeState`, which each program takes and gives back; None before the first
        self._shape = (0, 0, 0)  # rows, slots, biases
        self._clock = 0  # that of the state

    @property
    def busy(self) -> bool:
        """Whether anything is running or waits."""
        return bool(self.pending) or any(self.sequences)

    def add(self, sequences: Sequence[ActiveSequence]) -> None:
        """Lets the samples of a request wait for rows."""
        self.pending.extend(sequences)

    def cancel(self, sequence: ActiveSequence) -> None:
        """Takes a sequence out, wherever it is."""
        if sequence in self.pending:
            self.pending.remove(sequence)
        if sequence in self.sequences:
            self._leave([self.sequences.index(sequence)])

    def abandon(self) -> None:
        """Ends all that runs or waits with an error, for whoever still looks at it."""
        for sequence in [*self.pending, *filter(None, self.sequences)]:
            sequence.error = UserError(INTERRUPTED)

    def _forget(self) -> None:
        self._state, self.sequences, self._expected = None, [], []

    def step(self, params: Params, prefixes: PrefixCache | None, steps: int) -> None:
        """Lets waiting sequences in, then decodes up to `steps` tokens.

        Where it fails, all sequences at work are read again and go on one at a time, until it is clear whose failure it
        is: that one gets the error.
        """
        try:
            self._step(params, prefixes, steps)
        except Exception as error:
            self._begin_again(prefixes, error)
        except BaseException:  # an interruption is nobody's failure
            self._begin_again(prefixes)
            raise

    def _step(self, params: Params, prefixes: PrefixCache | None, steps: int) -> None:
        self._let_in(params, prefixes)
        masks = self._masks()
        running = [sequence.request for sequence in self.sequences if sequence is not None]
        if not running:
            return
        asked = [request.log_probs for request in running if request.log_probs is not None]
        alternatives = None if not asked else power_of_two(max(asked)) if max(asked) else 0
        self._state, chunk, every = decode(
            params, self._state, np.int32(1 if self.stepwise else min(steps, CHUNK)), masks, backbone=self.backbone,
            plan=self.plan, alternatives=alternatives,
        )  # fmt: skip
        self._deliver(jax.device_get(chunk), every)

    def _begin_again(self, prefixes: PrefixCache | None, error: Exception | None = None) -> None:
        """Lets all sequences at work wait again, for what is on the device may be lost."""
        at_work = list(dict.fromkeys([*filter(None, self.sequences), *self._expected]))
        self._forget()
        if prefixes is not None:
            prefixes.clear()
        self.pending = deque(sequence for sequence in self.pending if sequence not in at_work)
        if error is not None and len(at_work) == 1:
            at_work[0].error = error
        if error is not None and not at_work:
            raise error
        again = [sequence for sequence in at_work if not sequence.done]
        for sequence in again:
            sequence.suspect |= error is not None
        self.pending.extendleft(reversed(again))

    def _masks(self) -> np.ndarray | None:
        """The tokens that each row may take; sequences whose constraint cannot say leave."""
        if not self.stepwise:
            return None
        bits = np.full((len(self.sequences), -(-self.backbone.architecture.pieces // 32)), -1, np.int32)
        failed = []
        for row, sequence in enumerate(self.sequences):
            if sequence is None or sequence.matcher is None:
                continue
            try:
                sequence.matcher.fill(bits[row])
            except Exception as error:
                sequence.error = error
                failed.append(row)
        self._leave(failed)
        return bits

    def _deliver(self, chunk: Chunk, every: jax.Array | None) -> None:
        """Hands the tokens of a chunk to the sequences; rows whose sequence is done are free again.

        `every` f32[B, V]: the log-probabilities of all tokens, where one may be overruled.
        """
        self._clock = int(chunk.clock)
        ended_here, broken = [], []
        for row, sequence in enumerate(self.sequences):
            if sequence is None:
                continue
            overruled = self._given(sequence, chunk, row, every)
            if overruled is not None:
                self._state = overrule(self._state, np.int32(row), *map(np.int32, overruled), plan=self.plan)
            if chunk.broken[row]:
                broken.append(row)
            if sequence.done:
                self.sequences[row] = None
                own_mistake = sequence.completion is None and not chunk.broken[row]
                if sequence.stream is not None or sequence.matcher is not None or own_mistake:
                    ended_here.append(row)
        self._leave(ended_here)
        if broken:
            self._state = erase(self._state, row_numbers(broken, self._state), plan=self.plan)

    def _given(self, sequence: ActiveSequence, chunk: Chunk, row: int, every: jax.Array | None) -> Overruled | None:
        """Gives a sequence its part of the chunk; returns what it overruled. Its own mistakes are errors of its own."""
        try:
            return deliver(sequence, chunk, row, every)
        except Exception as error:
            sequence.error = error
            return None
        except BaseException:  # it may have got a part of the chunk, so it cannot go on
            sequence.error = UserError(INTERRUPTED)
            raise

    def _leave(self, rows: Sequence[int]) -> None:
        """Frees rows, and stops those that the device would let go on."""
        if not rows:
            return
        for row in rows:
            self.sequences[row] = None
        self._state = release(self._state, row_numbers(rows, self._state), plan=self.plan)

    def _let_in(self, params: Params, prefixes: PrefixCache | None) -> None:
        waiting = self._may_join()
        if waiting:
            self._make_room(waiting)
            free = [row for row, sequence in enumerate(self.sequences) if sequence is None]
            free = free[: max(0, self.max_rows - (len(self.sequences) - len(free)))]
            self._admit(params, prefixes, free[: len(waiting)])

    def _may_join(self) -> list[ActiveSequence]:
        """The sequences that wait; those that were there when a step failed run alone."""
        running = [sequence for sequence in self.sequences if sequence is not None]
        if any(sequence.suspect for sequence in running):
            return []
        first = next((number for number, waiting in enumerate(self.pending) if waiting.suspect), len(self.pending))
        alone = not first and self.pending and not running
        return [self.pending[0]] if alone else list(self.pending)[:first]

    def _make_room(self, waiting: Sequence[ActiveSequence]) -> None:
        """As many rows and slots as the waiting sequences want, as far as `max_rows` goes."""
        running = sum(sequence is not None for sequence in self.sequences)
        wanted = min(self.max_rows, running + len(waiting))
        rows = divided_rows(row_bucket, wanted, self.plan)
        self._expected = list(waiting[: rows - running])
        slots = slot_bucket(max(sequence.positions for sequence in [*self._expected, *filter(None, self.sequences)]))
        if not running or self._state is None:
            most = max(len(sequence.request.logit_bias) for sequence in waiting)
            biases = power_of_two(most) if most else 0
            shape = (rows, slots, biases)
            if self._state is None or shape != self._shape or self._clock > MOST_CLOCK:
                runtime.limit_programs()
                self._state = empty_state(self.backbone, self.plan, *shape, self.cache_dtype)
                self._shape, self._clock = shape, 0
            self.sequences = [None] * rows
        rows, slots = max(rows, self._shape[0]), max(slots, self._shape[1])
        if (rows, slots) != self._shape[:2]:
            runtime.limit_programs()
            self._state = resize(self._state, backbone=self.backbone, rows=rows, slots=slots, plan=self.plan)
            self.sequences += [None] * (rows - len(self.sequences))
            self._shape = (rows, slots, self._shape[2])
        self._expected = []

    def _admit(self, params: Params, prefixes: PrefixCache | None, free: list[int]) -> None:
        """Waiting sequences into free rows: each prompt is read once, whoever has it."""
        leaders: dict[tuple[int, ...], Prompt] = {}
        entering: list[tuple[int, ActiveSequence]] = []
        copies: list[tuple[int, int]] = []
        later: list[ActiveSequence] = []
        while self.pending and len(entering) < len(free):
            sequence = self.pending.popleft()
            row, prompt = free[len(entering)], sequence.so_far
            if len(sequence.request.logit_bias) > self._shape[2]:
                later.append(sequence)  # until the batch is empty; so that it gets there, nobody overtakes
                break
            if sequence.positions > self._shape[1]:
                later.append(sequence)  # until there is room, which is made for the first that wait
                continue
            if prompt in leaders:
                copies.append((leaders[prompt].row, row))
            else:
                leaders[prompt] = Prompt(prompt, row, self._slot_offset(prompt))
            entering.append((row, sequence))
            self.sequences[row] = sequence
        self.pending.extendleft(reversed(later))
        self._state = self._reader.read(params, self._state, list(leaders.values()), prefixes, self._shape[1])
        self._state = copied(self._state, copies, self.plan)
        if entering:
            offsets = [self._slot_offset(sequence.so_far) for _, sequence in entering]
            at, rows = row_values(entering, offsets, self._state)
            self._state = admit(self._state, at, rows, plan=self.plan)

    def _slot_offset(self, prompt: Sequence[int]) -> int:
        """What brings the slot of a prompt's last token to where the next step writes."""
        return self._clock - (len(prompt) - 1)
