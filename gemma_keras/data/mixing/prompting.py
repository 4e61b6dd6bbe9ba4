"""Which slot of a mixture gets which system prompt, and the prompts themselves."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from gemma_keras.config.sections import DataConfig
from gemma_keras.data.mixing.mixture import Mixture
from gemma_keras.data.mixing.system_prompts import FIXED_PROMPTS, KINDS, OWN, DynamicPrompts, assign_kinds, exact_counts
from gemma_keras.data.progress import Reporter
from gemma_keras.data.records import ChatRecord, Record
from gemma_keras.text.templates import Message
from gemma_keras.text.tokenizer import Tokenizer

FAILED = "dynamic_failed"
"""Kind of a conversation for which no prompt could be had; it has a fixed one."""

DYNAMIC = KINDS.index("dynamic")
CLOSED = len(KINDS)  # slots that get no system prompt: their record has one, or is no conversation, or there is none
SPLITS = ("train", "valid")


@dataclasses.dataclass(frozen=True, slots=True)
class Prompted:
    """The system prompt of one slot: its kind (see `system_prompts.KINDS`, `OWN`, `FAILED`), and its text if there is one."""

    kind: str = ""
    text: str = ""

    def before(self, messages: list[Message]) -> list[Message]:
        return [{"role": "system", "content": self.text}, *messages] if self.text else messages


def draw(*key: object) -> int:
    """A number of 64 bits that follows from `key` alone."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest())


class Prompter:
    """System prompts of both splits; those written by a model are asked for as they are needed, and kept in `cache`."""

    def __init__(self, config: DataConfig, cache: Path, tokenizer: Tokenizer, progress: Reporter):
        self._config = config
        self._tokenizer = tokenizer
        wanted = config.system_prompts.dynamic > 0
        self._dynamic = DynamicPrompts(config.system_prompts, cache, progress) if wanted else None

    def assign(self, mixture: Mixture) -> None:
        """Fixes the kind of every slot, in exact shares among the conversations without a system turn of their own."""
        free = np.zeros(len(mixture), bool)
        for number, pool in enumerate(mixture.pools):
            mine = mixture.corpora == number
            free[mine] = pool.columns["open_to_prompt"][mixture.places[mine]]
        kinds = np.full(len(mixture), CLOSED, np.uint8)
        rng = np.random.default_rng([self._config.seed, 5, SPLITS.index(mixture.split)])
        kinds[free] = assign_kinds(int(free.sum()), self._config.system_prompts, rng)
        mixture.kinds = kinds
        if self._dynamic:
            self._dynamic.client.announce(int((kinds == DYNAMIC).sum()))

    def dropped(self, mixture: Mixture, slots: list[int], first: int) -> set[int]:
        """Deals kinds anew after some slots got no record, so that shares stay exact; returns the slots of another kind.

        Args:
            first: slots from this one on may still change.
        """
        kinds = mixture.kinds
        kinds[slots] = CLOSED
        present = np.bincount(kinds, minlength=CLOSED)[:CLOSED]
        missing = np.array(exact_counts(int(present.sum()), self._config.system_prompts)) - present
        changing = [
            first + np.flatnonzero(kinds[first:] == kind)[missing[kind] :] for kind in np.flatnonzero(missing < 0)
        ]
        places = np.concatenate([np.zeros(0, np.int64), *changing])
        kinds[places] = np.repeat(np.arange(CLOSED), np.maximum(missing, 0))[: len(places)]
        return set(places.tolist())

    def prompts(self, mixture: Mixture, slots: list[tuple[int, Record]]) -> list[Prompted]:
        """The system prompts of some slots, whose records may be others than those first assigned."""
        kinds = [_kind(mixture.kinds[slot], record) for slot, record in slots]
        asked = [record.messages for kind, (_, record) in zip(kinds, slots) if kind == KINDS[DYNAMIC]]  # type: ignore[union-attr]
        written = iter(self._dynamic.write(asked) if self._dynamic and asked else [])
        prompted = []
        for kind, (slot, _) in zip(kinds, slots):
            text = next(written) if kind == KINDS[DYNAMIC] else None
            if kind == KINDS[DYNAMIC] and text is None:
                kind = FAILED
            if kind in ("fixed", FAILED):
                text = FIXED_PROMPTS[draw(self._config.seed, mixture.split, slot) % len(FIXED_PROMPTS)]
            prompted.append(Prompted(kind, text or ""))
        return prompted

    def estimate(self, mixtures: list[Mixture]) -> dict[str, Any]:
        """What the dynamic prompts would cost: calls that no cached answer saves, and about how many tokens."""
        if self._dynamic is None:
            return {"calls": 0, "prompt_tokens": 0, "completion_tokens": 0}
        asking = ((mixture, slot) for mixture in mixtures for slot in np.flatnonzero(mixture.kinds == DYNAMIC).tolist())
        records = (mixture.record(slot) for mixture, slot in asking)
        return self._dynamic.estimate(
            (record.messages for record in records if isinstance(record, ChatRecord)),
            lambda texts: sum(map(len, self._tokenizer.encode_content_batch(texts))),
        )

    def failures(self) -> list[dict[str, Any]]:
        """The conversations for which no prompt could be had, and why."""
        return self._dynamic.failures if self._dynamic else []

    def close(self) -> None:
        if self._dynamic:
            self._dynamic.client.cache.close()


def _kind(dealt: int, record: Record) -> str:
    """The kind of system prompt of a slot with this record, which was dealt a kind of `KINDS`, or none."""
    if not isinstance(record, ChatRecord):
        return ""
    if record.messages[0]["role"] == "system":
        return OWN
    return KINDS[dealt] if dealt != CLOSED else KINDS[0]
