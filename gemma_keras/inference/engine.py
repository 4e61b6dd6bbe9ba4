"""Generation: prompts in, continuations out, many at a time, with continuous batching.

Requests that are free run in chunks on the device. Constrained ones need their last token on the host before the next can
be chosen, so they run in a batch of their own, token by token, beside them. Beam search and contrastive search have groups
of their own. All take turns: a step of the engine is one of each kind.
"""

import dataclasses
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, overload

import jax
from keras_hub.models import Backbone

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import SamplingConfig
from gemma_keras.inference.constraints.grammars import Grammars
from gemma_keras.inference.delivery import ActiveSequence
from gemma_keras.inference.interleaving import GroupRunner
from gemma_keras.inference.prefix_cache import PrefixCache
from gemma_keras.inference.requests import (
    Delta,
    FinishedSequence,
    Request,
    Score,
    ScoreRequest,
    check_request,
    check_score,
)
from gemma_keras.inference.scheduler import Scheduler
from gemma_keras.inference.scoring import ActiveScore, Scorer
from gemma_keras.inference.search.searches import beam_groups, contrastive_groups
from gemma_keras.inference.text_stream import TextStream
from gemma_keras.models.cpu_matrices import output_major
from gemma_keras.models.forward import EMBEDDINGS, Params
from gemma_keras.parallel.plan import ONE_DEVICE, ComputePlan
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
        backbone: Backbone,
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
        embeddings = params.get(EMBEDDINGS)
        on_cpu = isinstance(embeddings, jax.Array) and {d.platform for d in embeddings.devices()} == {"cpu"}
        # The weights, on CPUs in the form that those multiply fastest.
        self.params = output_major(params, halves=max_rows > 1) if on_cpu and plan.mesh is None else params
        self._grammars: dict[tuple[int, ...], Grammars] = {}
        self._begin()

    def reset(self) -> None:
        """Drops whatever is running or kept."""
        for runner in self._runners:
            runner.abandon()
        self._begin()

    def _begin(self) -> None:
        model = (self.backbone, self.plan)
        cached: dict[str, Any] = {"max_rows": self.max_rows, "cache_dtype": self.cache_dtype}
        self._free = Scheduler(*model, **cached)
        self._constrained = Scheduler(*model, **cached, stepwise=True)
        self._beams = beam_groups(*model, **cached)
        self._contrastive = contrastive_groups(*model, max_rows=self.max_rows)
        scorer = Scorer(*model, self.cache_dtype)
        self._scores: GroupRunner[ActiveScore] = GroupRunner(scorer, lambda request: 1, self.max_rows)
        self._runners = (self._free, self._constrained, self._beams, self._contrastive, self._scores)
        self.prefixes = (
            PrefixCache(self.backbone, self.plan, self.prefix_tokens, self.cache_dtype) if self.prefix_tokens else None
        )

    def generate(self, requests: Sequence[Request]) -> list[list[FinishedSequence]]:
        """The samples of each request, in order. All or nothing: the first mistake ends the call, but no other one.

        Raises:
            UserError: an impossible request (`check_request`, constraints), or logits that are not finite.
        """
        # Before anything runs, so that a mistake in a request costs no time.
        members = [self._prepared(request, number) for number, request in enumerate(requests)]
        self._finish(members, all_or_nothing=True)
        return [[sequence.completion for sequence in member if sequence.completion is not None] for member in members]

    def generate_each(self, requests: Sequence[Request]) -> list[list[FinishedSequence] | UserError]:
        """As `generate`, but a request with a mistake has the error in its place; no other one suffers."""
        members: list[list[ActiveSequence]] = []
        for number, request in enumerate(requests):
            try:
                members.append(self._prepared(request, number))
            except UserError as error:
                members.append([ActiveSequence(request, number, seed=0, error=error)])
        self._finish([member for member in members if not member[0].done], all_or_nothing=False)
        answers: list[list[FinishedSequence] | UserError] = []
        for member in members:
            failed = next((sequence.error for sequence in member if sequence.error is not None), None)
            if failed is not None and not isinstance(failed, UserError):
                raise failed
            answers.append(failed or [s.completion for s in member if s.completion is not None])
        return answers

    def score(
        self, prompt: Sequence[int], continuations: Sequence[Sequence[int]], *, prompt_log_probs: bool = False,
        alternatives: int = 0,
    ) -> Score:  # fmt: skip
        """The log-probabilities of `continuations` of a prompt, and of the prompt's own tokens where asked.

        Raises:
            UserError: as `score_all`.
        """
        request = ScoreRequest(
            prompt=prompt, continuations=continuations, prompt_log_probs=prompt_log_probs, alternatives=alternatives
        )
        return self.score_all([request])[0]

    def score_all(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """The scores of each request, in order; prompts that are the same are read once.

        Raises:
            UserError: an impossible request (`check_score`), or logits that are not finite.
        """
        members = [self._prepared(request, number) for number, request in enumerate(requests)]
        self._finish(members, all_or_nothing=True)
        return [active.score for (active,) in members if active.score is not None]

    def _finish(self, members: Sequence[Sequence[ActiveSequence | ActiveScore]], *, all_or_nothing: bool) -> None:
        """Lets requests join, and everything go on until these are done."""
        own = [active for member in members for active in member]
        for member in members:
            self._runner_of(member[0]).add(member)
        try:
            while any(not sequence.done for sequence in own):
                self.step()
                for sequence in own if all_or_nothing else ():
                    if sequence.error is not None:
                        raise sequence.error
        finally:
            for sequence in own:
                if not sequence.done:
                    self.cancel(sequence)

    def stream(self, request: Request) -> Iterator[Delta]:
        """One continuation, piece by piece; the last piece carries the completion. Closing the iterator ends the request.

        Raises:
            UserError: as `generate`, or more than one sample, or a search, which has no pieces.
        """
        if request.samples != 1 or request.search != "sampling":
            raise UserError(
                f"{request.samples} samples by {request.search}; what is streamed is one sample, without search."
            )
        sequence = self.submit(request)
        try:
            while True:
                while sequence.unread:
                    yield sequence.unread.popleft()
                if sequence.done:
                    break
                self.step(STREAMED_STEPS)
        finally:
            if not sequence.done:
                self.cancel(sequence)
        if sequence.error is not None:
            raise sequence.error

    @overload
    def submit(self, request: Request, number: int = 0) -> ActiveSequence: ...
    @overload
    def submit(self, request: ScoreRequest, number: int = 0) -> ActiveScore: ...
    def submit(self, request: Request | ScoreRequest, number: int = 0) -> ActiveSequence | ActiveScore:
        """Lets a request of one sample join; `step` then adds pieces to its sequence, `unread`, until that is done.

        A search gives all in one piece, and scores stand in what is returned.
        """
        if isinstance(request, Request) and request.samples != 1:
            raise UserError(f"{request.samples} samples were asked for; what is submitted is one sample.")
        (active,) = self._prepared(request, number, streamed=True)
        self._runner_of(active).add([active])
        return active

    def cancel(self, active: ActiveSequence | ActiveScore) -> None:
        """Takes a submitted request out."""
        self._runner_of(active).cancel(active)

    def step(self, steps: int = STEPS) -> bool:
        """Lets all running requests go on by some tokens, each kind in turn; whether there were any."""
        busy = [runner for runner in self._runners if runner.busy]
        for runner in busy:
            runner.step(self.params, self.prefixes, steps)
        return bool(busy)

    def _prepared(self, request: Request | ScoreRequest, number: int, *, streamed: bool = False) -> list[Any]:
        """The samples of a request, or its `ActiveScore`, where it has no mistake."""
        architecture = self.backbone.architecture
        limits = number, architecture.pieces, architecture.max_position
        if isinstance(request, ScoreRequest):
            check_score(request, *limits)
            return [ActiveScore(request, number)]
        check_request(request, *limits)
        needs = request.constraint is not None or request.stop_strings is not None
        if needs and self.tokenizer is None:
            raise UserError("stop strings and constraints need a tokenizer; give one to the engine.")
        return [self._sequence(request, number, sample, streamed) for sample in range(request.samples)]

    def _sequence(self, request: Request, number: int, sample: int, streamed: bool) -> ActiveSequence:
        sequence = ActiveSequence(
            request, number, row_seed(request.sampling, request.stream, sample), unread=deque() if streamed else None
        )
        if self.tokenizer is None:
            return sequence
        sequence.decode = self.tokenizer.decode
        if (streamed and request.search == "sampling") or request.stop_strings is not None:
            sequence.stream = TextStream(self.tokenizer, request.stop_strings or ())
        if request.constraint is not None:
            stops = tuple(request.stop_ids)
            if stops not in self._grammars:
                self._grammars[stops] = Grammars(self.tokenizer, stops)
            sequence.matcher = self._grammars[stops].matcher(request.constraint, request.sampling.max_new_tokens)
        return sequence

    def _runner_of(self, sequence: ActiveSequence | ActiveScore) -> Any:
        if isinstance(sequence, ActiveScore):
            return self._scores
        if sequence.request.search != "sampling":
            return self._beams if sequence.request.search == "beam" else self._contrastive
        return self._free if sequence.matcher is None else self._constrained


def row_seed(sampling: SamplingConfig, stream: int, sample: int) -> int:
    """32 bits for the draws of one sample."""
    return zlib.crc32(f"{sampling.seed}/{stream}/{sample}".encode())


def with_streams(requests: Sequence[Request]) -> list[Request]:
    """The requests of one call, each with a stream of random numbers of its own."""
    return [dataclasses.replace(request, stream=number) for number, request in enumerate(requests)]
