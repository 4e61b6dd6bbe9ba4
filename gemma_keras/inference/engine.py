"""Generation: prompts in, continuations out, many at a time, with continuous batching.

Requests that are free run in chunks on the device. Constrained ones need their last token on the host before the next can
be chosen, so they run in a batch of their own, token by token, beside them. Beam search and contrastive search have loops
of their own.
"""

import dataclasses
import zlib
from collections import deque
from collections.abc import Iterator, Sequence

import jax
from keras_hub.models import GemmaBackbone

from gemma_keras.config.errors import UserError
from gemma_keras.config.schema import SamplingConfig
from gemma_keras.inference.beam import beam_search
from gemma_keras.inference.buckets import power_of_two, slot_bucket
from gemma_keras.inference.constraints import Grammars
from gemma_keras.inference.contrastive import candidates_of, contrastive_search
from gemma_keras.inference.delivery import ActiveSequence
from gemma_keras.inference.prefill import PromptReader, divided_rows
from gemma_keras.inference.prefix_cache import PrefixCache
from gemma_keras.inference.requests import Completion, Delta, Request, broken_logits, check_request
from gemma_keras.inference.scheduler import Scheduler
from gemma_keras.inference.text_stream import TextStream
from gemma_keras.models.compute_plan import ONE_DEVICE, ComputePlan
from gemma_keras.models.forward import EMBEDDINGS, Params
from gemma_keras.models.output_major import output_major
from gemma_keras.text.tokenizer import Tokenizer

STEPS = 16  # tokens of a row between two looks of the host
STREAMED_STEPS = 4


class Engine:
    """Generates with a backbone and its params, adapters in place or merged. Not for several threads at once.

    Compiled programs belong to the backbone: engines of the same one share them, whatever their params.

    Args:
        tokenizer: for texts, stop strings and constraints; token ids need none.
        plan: how the weights lie on devices.
        max_rows: sequences that decode side by side.
        cache_dtype: of keys and values: "auto" (as the model computes) or "int8".
        prefix_tokens: tokens whose keys and values are kept for prompts that begin alike; 0: none are.
    """

    def __init__(
        self,
        backbone: GemmaBackbone,
        params: Params,
        tokenizer: Tokenizer | None = None,
        *,
        plan: ComputePlan = ONE_DEVICE,
        max_rows: int = 32,
        cache_dtype: str = "auto",
        prefix_tokens: int = 0,
    ):
        self.backbone, self.tokenizer, self.plan = backbone, tokenizer, plan
        self.max_rows, self.cache_dtype, self.prefix_tokens = max_rows, cache_dtype, prefix_tokens
        self.params = params
        self._grammars: dict[tuple[int, ...], Grammars] = {}
        self._begin()

    @property
    def params(self) -> Params:
        """The weights, on CPUs in the form that those multiply fastest."""
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        embeddings = params.get(EMBEDDINGS)
        on_cpu = isinstance(embeddings, jax.Array) and {d.platform for d in embeddings.devices()} == {"cpu"}
        turned = on_cpu and self.plan.mesh is None
        self._params = output_major(params, halves=self.max_rows > 1) if turned else params

    def reset(self) -> None:
        """Drops whatever is running or kept. For after an interruption, which may have lost it."""
        for scheduler in (self._free, self._constrained):
            scheduler.abandon()
        self._begin()

    def _begin(self) -> None:
        self._free, self._constrained = self._new_scheduler(stepwise=False), self._new_scheduler(stepwise=True)
        self.prefixes = (
            PrefixCache(self.backbone, self.plan, self.prefix_tokens, self.cache_dtype) if self.prefix_tokens else None
        )

    def _new_scheduler(self, *, stepwise: bool) -> Scheduler:
        return Scheduler(
            self.backbone, self.plan, max_rows=self.max_rows, cache_dtype=self.cache_dtype,
            decode_text=self.tokenizer.decode if self.tokenizer is not None else None, stepwise=stepwise,
        )  # fmt: skip

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """The samples of each request, in order. All or nothing: the first mistake ends the call.

        Raises:
            UserError: an impossible request (`check_request`, constraints), or logits that are not finite.
        """
        for number, request in enumerate(requests):
            self._check(request, number)
        # Before anything runs, so that a mistake in a constraint stops nobody else.
        waiting = {
            number: self._sequences(request, number)
            for number, request in enumerate(requests)
            if request.search == "sampling"
        }
        try:
            answers = self._sample(waiting)
            for search, loop in (("beam", self._beams), ("contrastive", self._contrast)):
                numbers = [number for number, request in enumerate(requests) if request.search == search]
                answers |= loop({number: requests[number] for number in numbers})
        except BaseException:
            self.reset()
            raise
        return [answers[number] for number in range(len(requests))]

    def _sample(self, waiting: dict[int, list[ActiveSequence]]) -> dict[int, list[Completion]]:
        own = [sequence for sequences in waiting.values() for sequence in sequences]
        for sequence in own:
            self._scheduler_of(sequence).pending.append(sequence)
        while any(not sequence.done for sequence in own):
            self.step()
            for sequence in own:
                if sequence.error is not None:
                    raise sequence.error
        return {
            number: [sequence.completion for sequence in sequences if sequence.completion is not None]
            for number, sequences in waiting.items()
        }

    def _beams(self, requests: dict[int, Request]) -> dict[int, list[Completion]]:
        answers: dict[int, list[Completion]] = {}
        beams = max((request.sampling.num_beams for request in requests.values()), default=1)
        for numbers in _groups(requests, max(1, self.max_rows // beams)):
            group = [requests[number] for number in numbers]
            prompts = [request.prompt for request in group]
            reader = PromptReader(self.backbone, self.plan)
            cache = reader.cache_of(self.params, prompts, beams, self.cache_dtype, self.prefixes)
            found = beam_search(self.backbone, self.plan, self.params, cache, group)
            for number, request, finished in zip(numbers, group, found, strict=True):
                best = finished[: request.samples]
                answers[number] = [self._completion(beam.tokens, stopped=beam.stopped) for beam in best]
        return answers

    def _contrast(self, requests: dict[int, Request]) -> dict[int, list[Completion]]:
        answers: dict[int, list[Completion]] = {}
        vocabulary = self.backbone.architecture.vocabulary_size
        most = max((candidates_of(request, vocabulary) for request in requests.values()), default=1)
        for numbers in _groups(requests, max(1, self.max_rows // most)):
            group = [requests[number] for number in numbers]
            slots = slot_bucket(max(len(request.prompt) for request in group))
            rows = divided_rows(power_of_two, len(group), self.plan)
            found = contrastive_search(self.backbone, self.plan, self.params, group, slots, rows)
            for row, number in enumerate(numbers):
                tokens = [int(token) for token in found.tokens[row] if token >= 0]
                if found.broken[row]:
                    raise broken_logits(number, len(tokens))
                answers[number] = [self._completion(tokens, stopped=bool(found.stopped[row]))]
        return answers

    def _completion(self, tokens: list[int], *, stopped: bool) -> Completion:
        text = self.tokenizer.decode(tokens) if self.tokenizer is not None else None
        return Completion(tokens=tokens, reason="stop" if stopped else "length", text=text)

    def stream(self, request: Request) -> Iterator[Delta]:
        """One continuation, piece by piece; the last piece carries the completion. Closing the iterator ends the request.

        Raises:
            UserError: as `generate`, or more than one sample.
        """
        sequence = self.submit(request)
        sequence.unread = deque()
        try:
            while True:
                while sequence.unread:
                    yield sequence.unread.popleft()
                if sequence.done:
                    break
                self.step(STREAMED_STEPS)
        except GeneratorExit:
            self.cancel(sequence)
        except BaseException:
            self.reset()
            raise
        if sequence.error is not None:
            raise sequence.error

    def submit(self, request: Request, number: int = 0) -> ActiveSequence:
        """Lets a request of one sample join; `step` then gives its pieces until its sequence is done.

        Pieces that come while another call runs the engine are in the sequence only.
        """
        self._check(request, number)
        if request.samples != 1 or request.search != "sampling":
            raise UserError(
                f"{request.samples} samples by {request.search}; what is streamed is one sample, without search."
            )
        (sequence,) = self._sequences(request, number, streamed=True)
        self._scheduler_of(sequence).pending.append(sequence)
        return sequence

    def cancel(self, sequence: ActiveSequence) -> None:
        """Takes a submitted request out."""
        self._scheduler_of(sequence).cancel(sequence)

    def step(self, steps: int = STEPS) -> list[tuple[ActiveSequence, Delta]]:
        """Lets all running requests go on by some tokens."""
        progress: list[tuple[ActiveSequence, Delta]] = []
        for scheduler in (self._free, self._constrained):
            if scheduler.busy:
                progress += scheduler.step(self.params, self.prefixes, steps)
        return progress

    def _check(self, request: Request, number: int) -> None:
        architecture = self.backbone.architecture
        check_request(request, number, architecture.vocabulary_size, architecture.max_position)
        needs = request.constraint is not None or request.stop_strings is not None
        if needs and self.tokenizer is None:
            raise UserError("stop strings and constraints need a tokenizer; give one to the engine.")

    def _sequences(self, request: Request, number: int, *, streamed: bool = False) -> list[ActiveSequence]:
        return [self._sequence(request, number, sample, streamed) for sample in range(request.samples)]

    def _sequence(self, request: Request, number: int, sample: int, streamed: bool) -> ActiveSequence:
        sequence = ActiveSequence(request, number, row_seed(request.sampling, request.stream, sample))
        if self.tokenizer is None:
            return sequence
        if streamed or request.stop_strings is not None:
            sequence.stream = TextStream(self.tokenizer, request.stop_strings or ())
        if request.constraint is not None:
            stops = tuple(request.stop_ids)
            if stops not in self._grammars:
                self._grammars[stops] = Grammars(self.tokenizer, stops)
            sequence.matcher = self._grammars[stops].matcher(request.constraint, request.sampling.max_new_tokens)
        return sequence

    def _scheduler_of(self, sequence: ActiveSequence) -> Scheduler:
        return self._free if sequence.matcher is None else self._constrained


def row_seed(sampling: SamplingConfig, stream: int, sample: int) -> int:
    """32 bits for the draws of one sample."""
    return zlib.crc32(f"{sampling.seed}/{stream}/{sample}".encode())


def _groups(requests: dict[int, Request], size: int) -> list[list[int]]:
    """Numbers of requests, those of like lengths together."""
    order = sorted(requests, key=lambda number: len(requests[number].prompt))
    return [order[first : first + size] for first in range(0, len(order), size)]


def with_streams(requests: Sequence[Request]) -> list[Request]:
    """The requests of one call, each with a stream of random numbers of its own."""
    return [dataclasses.replace(request, stream=number) for number, request in enumerate(requests)]
