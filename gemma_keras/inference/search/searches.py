"""How groups of requests are answered by a search: by beams, or by contrastive search."""

from collections.abc import Iterator, Sequence

from keras_hub.models import Backbone

from gemma_keras.inference.buckets import power_of_two, slot_bucket
from gemma_keras.inference.delivery import ActiveSequence, Decode
from gemma_keras.inference.interleaving import GroupRunner
from gemma_keras.inference.prefill import PromptReader, divided_rows
from gemma_keras.inference.prefix_cache import PrefixCache
from gemma_keras.inference.requests import broken_logits
from gemma_keras.inference.search.beam import beam_search
from gemma_keras.inference.search.contrastive import candidates_of, contrastive_search, is_over
from gemma_keras.models.forward import Params
from gemma_keras.parallel.plan import ComputePlan

Members = Sequence[Sequence[ActiveSequence]]


def beam_groups(
    backbone: Backbone, plan: ComputePlan, *, max_rows: int, cache_dtype: str, decode_text: Decode | None
) -> GroupRunner[ActiveSequence]:
    """Runs beam search for groups of requests, token by token."""

    def work(params: Params, prefixes: PrefixCache | None, members: Members) -> Iterator[None]:
        group = [member[0].request for member in members]
        beams = max(request.sampling.num_beams for request in group)
        reader = PromptReader(backbone, plan)
        cache = reader.cache_of(params, [request.prompt for request in group], beams, cache_dtype, prefixes)
        for step, done in enumerate(beam_search(backbone, plan, params, cache, group)):
            for number, found in done.items():
                for sample, sequence in enumerate(members[number]):
                    if found is None:
                        sequence.error = broken_logits(sequence.number, step)
                    else:
                        _complete(sequence, found[sample].tokens, found[sample].stopped, decode_text)
            yield

    return GroupRunner(work, lambda request: request.sampling.num_beams, max_rows, by_token=True)


def contrastive_groups(
    backbone: Backbone, plan: ComputePlan, *, max_rows: int, decode_text: Decode | None
) -> GroupRunner[ActiveSequence]:
    """Runs contrastive search for groups of requests, some tokens at a time."""

    def work(params: Params, prefixes: PrefixCache | None, members: Members) -> Iterator[None]:
        sequences = [sequence for (sequence,) in members]
        group = [sequence.request for sequence in sequences]
        slots = slot_bucket(max(len(request.prompt) for request in group))
        rows = divided_rows(power_of_two, len(group), plan)
        for found in contrastive_search(backbone, plan, params, group, slots, rows):
            for row, sequence in enumerate(sequences):
                if sequence.done or not is_over(sequence.request, found, row):
                    continue
                tokens = [int(token) for token in found.tokens[row] if token >= 0]
                if found.broken[row]:
                    sequence.error = broken_logits(sequence.number, len(tokens))
                else:
                    _complete(sequence, tokens, bool(found.stopped[row]), decode_text)
            yield

    pieces = backbone.architecture.pieces
    return GroupRunner(work, lambda request: candidates_of(request, pieces), max_rows)


def _complete(sequence: ActiveSequence, tokens: list[int], stopped: bool, decode_text: Decode | None) -> None:
    sequence.tokens = tokens
    sequence.end("stop" if stopped else "length", decode_text)
    assert sequence.completion is not None
    sequence.add_piece(tokens, sequence.completion.text or "")
