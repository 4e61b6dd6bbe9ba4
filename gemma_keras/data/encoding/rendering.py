"""The slots of a mixture to rows on disk."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import DataConfig
from gemma_keras.data.cleaning.ngrams import batched
from gemma_keras.data.cleaning.rules import unlearnt_turns
from gemma_keras.data.encoding.encode import Encoded, encode_records
from gemma_keras.data.encoding.writing import SplitWriter
from gemma_keras.data.mixing.mixture import Mixture
from gemma_keras.data.mixing.prompting import Prompted, Prompter, draw
from gemma_keras.data.mixing.system_prompts import FIXED_PROMPTS
from gemma_keras.data.mixing.wordings import reword
from gemma_keras.data.pools.outcomes import NOT_DRAWN
from gemma_keras.data.pools.pool import Pool
from gemma_keras.data.progress import Pace, Reporter
from gemma_keras.data.records import ChatRecord, PreferenceRecord, Record
from gemma_keras.data.sources.base import model
from gemma_keras.text.templates import Message, get_template
from gemma_keras.text.tokenizer import Tokenizer

BATCH_ROWS, BATCH_BYTES = 2048, 4_000_000


@dataclasses.dataclass(slots=True)
class Rendered:
    """What a split has come to; `by_*` count records, `lengths` are of the rows that an epoch trains on, i32.

    `shortened` counts those that are `truncated`, have `turns_cut` or are partly `unlearnt` (some turns carry no loss).
    `packed_rows` has the number of packed rows of each augmentation; `pairs`: two rows are the sides of a preference pair, and
    packed together.
    """

    by_pool: Counter[int] = dataclasses.field(default_factory=Counter)
    by_type: Counter[str] = dataclasses.field(default_factory=Counter)
    by_system_prompt: Counter[str] = dataclasses.field(default_factory=Counter)
    shortened: Counter[str] = dataclasses.field(default_factory=Counter)
    lengths: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    packed_rows: list[int] = dataclasses.field(default_factory=list)
    pairs: bool = False


@dataclasses.dataclass(slots=True)
class _Slot:
    """A slot of a mixture with the record that fills it so far."""

    number: int
    pool: int
    place: int
    record: Record
    prompted: Prompted = dataclasses.field(default_factory=Prompted)
    encoded: Encoded | None = None
    tries: int = 0


class Renderer:
    """Encodes slots batch after batch and writes them in order."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, prompter: Prompter, progress: Reporter):
        self._config = config
        self._tokenizer = tokenizer
        self._template = get_template(config.template)
        self._prompter = prompter
        self._progress = progress

    def usable(self, records: list[Record]) -> list[bool]:
        """Whether records fit, with the longest of the fixed system prompts before those that may get one."""
        longest = Prompted(text=max(FIXED_PROMPTS, key=len) if self._config.system_prompts.none < 1 else "")
        slots = [_Slot(0, 0, 0, record) for record in records]
        for slot in slots:
            if isinstance(slot.record, ChatRecord) and slot.record.messages[0]["role"] != "system":
                slot.prompted = longest
        return [not encoded.removed for encoded in self._encoded(slots)]

    def render(self, mixture: Mixture, folder: Path, fingerprint: str) -> Rendered:
        """Writes a split and decides the fate of every record of its pools.

        A record that cannot be used gives way to the next of its corpus.
        """
        pools = mixture.pools
        rendered = Rendered(pairs=_holds_pairs(mixture))
        writer = SplitWriter(folder, rendered.pairs)
        pace = Pace(f"encoded {mixture.split}", self._progress, len(mixture))
        filled = (
            _Slot(number, pool, place, pools[pool].record(place))
            for number, (pool, place) in enumerate(zip(map(int, mixture.corpora), map(int, mixture.places)))
        )
        for slots in batched(filled, BATCH_ROWS, BATCH_BYTES, lambda slot: pools[slot.pool].size(slot.place)):
            self._fill(mixture, slots)
            for slot in slots:
                if slot.encoded is not None:
                    self._add(rendered, writer, pools[slot.pool], slot)
            pace.done(slots[-1].number + 1)
        pace.finish(len(mixture))
        for pool in pools:
            pool.fates.settle(pool.fates.undecided(), NOT_DRAWN)
        rendered.lengths, rendered.packed_rows = writer.close(
            fingerprint, mixture.split, self._config.sequence_length, self._config.packing
        )
        return rendered

    def _fill(self, mixture: Mixture, slots: list[_Slot]) -> None:
        """Encodes the slots of a batch; where some stay empty, others may have to change their kind of system prompt."""
        changed = slots
        while changed:
            self._encode(mixture, changed)
            empty = [slot.number for slot in changed if slot.encoded is None]
            if not empty:
                break
            numbers = self._prompter.dropped(mixture, empty, slots[0].number)
            changed = [slot for slot in slots if slot.number in numbers and slot.encoded is not None]

    def _encode(self, mixture: Mixture, slots: list[_Slot]) -> None:
        """Fills in what each slot becomes; None where its corpus has nothing left and may give less."""
        pending = slots
        while pending:
            prompts = self._prompter.prompts(mixture, [(slot.number, slot.record) for slot in pending])
            for slot, prompted in zip(pending, prompts, strict=True):
                slot.prompted = prompted
            again = []
            for slot, result in zip(pending, self._encoded(pending), strict=True):
                pool = mixture.pools[slot.pool]
                slot.encoded = None
                if not result.removed:
                    slot.encoded = result
                    continue
                pool.fates.remove(slot.place, result.removed)
                # Rows that repeat come round for ever, and a row that fits elsewhere may not fit here, for its system prompt.
                slot.tries += 1
                left = slot.tries <= mixture.available[slot.pool]
                replacement = next(mixture.reserves[slot.pool], None) if left else None
                if replacement is not None:
                    slot.place, slot.record = replacement, pool.record(replacement)
                    again.append(slot)
                elif self._config.rows and mixture.split == "train" and self._config.too_small != "less":
                    removed = ", ".join(f"{rule}: {count}" for rule, count in pool.removed_records().items())
                    removed = removed or f"at last {result.removed}"
                    raise UserError(
                        f"data.rows is {self._config.rows}, but {pool.corpus.name} has too few rows that can be used "
                        f"({removed}); lower data.rows, raise data.sequence_length, or set data.too_small to less"
                    )
            pending = again

    def _encoded(self, slots: list[_Slot]) -> list[Encoded]:
        conversations = [self._conversations(slot) for slot in slots]
        records = [slot.record for slot in slots]
        return encode_records(records, conversations, self._tokenizer, self._template, self._config)

    def _conversations(self, slot: _Slot) -> list[list[Message]]:
        record = slot.record
        if isinstance(record, ChatRecord):
            wordings = [record.messages]
            if record.wording:
                draws = [draw(self._config.seed, slot.number, record.id, n) for n in range(self._config.editions)]
                wordings = [reword(record.messages, record.wording, drawn) for drawn in draws]
            return [slot.prompted.before(messages) for messages in wordings]
        if isinstance(record, PreferenceRecord):
            return [[*record.prompt, model(side)] for side in (record.chosen, record.rejected)]
        return []

    def _add(self, rendered: Rendered, writer: SplitWriter, pool: Pool, slot: _Slot) -> None:
        assert slot.encoded is not None
        pool.fates.use(slot.place)
        writer.add(slot.record, slot.encoded.rows, slot.prompted.kind)
        rendered.by_pool[slot.pool] += 1
        rendered.by_type[slot.record.type] += 1
        unlearnt = bool(unlearnt_turns(slot.record))
        rendered.shortened.update(truncated=slot.encoded.truncated, turns_cut=slot.encoded.turns_cut, unlearnt=unlearnt)
        if slot.prompted.kind:
            rendered.by_system_prompt[slot.prompted.kind] += 1


def _holds_pairs(mixture: Mixture) -> bool:
    """Whether the records are preference pairs.

    Raises:
        UserError: some are and some are not.
    """
    drawn, firsts = np.unique(mixture.corpora, return_index=True)
    pairs = [isinstance(mixture.record(slot), PreferenceRecord) for slot in firsts]
    if any(pairs) and not all(pairs):
        names = {mixture.pools[number].corpus.name: pair for number, pair in zip(drawn, pairs)}
        raise UserError(
            f"{', '.join(n for n, pair in names.items() if pair)} hold preference pairs and "
            f"{', '.join(n for n, pair in names.items() if not pair)} do not; prepare them apart"
        )
    return any(pairs)
