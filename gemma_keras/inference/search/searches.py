"""How groups of requests are answered by a search: by beams, or by contrastive search."""

from collections.abc import Iterator, Sequence

from keras_hub.models import Backbone

from gemma_keras.inference.buckets import power_of_two, slot_bucket
from gemma_keras.inference.delivery import ActiveSequence, deliver
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
    backbone: Backbone, plan: ComputePlan, *, max_rows: int, cache_dtype: str
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
                        continue
                    sequence.tokens = found[sample].tokens
                    text = sequence.end("stop" if found[sample].stopped else "length")
                    sequence.add_piece(sequence.tokens, text)
            yield

    return GroupRunner(work, lambda request: request.sampling.num_beams, max_rows, by_token=True)


def contrastive_groups(backbone: Backbone, plan: ComputePlan, *, max_rows: int) -> GroupRunner[ActiveSequence]:
    """Runs contrastive search for groups of requests, some tokens at a time."""

    def work(params: Params, prefixes: PrefixCache | None, members: Members) -> Iterator[None]:
        sequences = [sequence for (sequence,) in members]
        group = [sequence.request for sequence in sequences]
        slots = slot_bucket(max(len(request.prompt) for request in group))
        rows = divided_rows(power_of_two, len(group), plan)
        for found in contrastive_search(backbone, plan, params, group, slots, rows):
            for row, sequence in enumerate(sequences):
                if not sequence.done and is_over(sequence.request, found, row):
                    deliver(sequence, found, row)
            yield

    pieces = backbone.architecture.pieces
    return GroupRunner(work, lambda request: candidates_of(request, pieces), max_rows)
