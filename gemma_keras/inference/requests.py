"""What is asked of the engine, and what it answers."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import SamplingConfig
from gemma_keras.inference.constraints.constraint import Constraint
from gemma_keras.inference.sampling import check_sampling
from gemma_keras.inference.text_stream import StopStrings

MOST_ALTERNATIVES = 20
MOST_BIASES = 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt and how it is to be continued.

    Attributes:
        prompt: token ids, bos included.
        sampling: its settings; the draws of sample j depend on `sampling.seed`, `stream` and j only.
        stream: tells apart prompts of one call that share a seed.
        samples: continuations of the same prompt, which is read once.
        stop_ids: tokens that end an answer, left out of it.
        stop_strings: texts that end an answer, left out of its text.
        constraint: what the answer has to be; it then always is, within `sampling.max_new_tokens`.
        logit_bias: added to the logits of tokens before anything else.
        log_probs: None; or how many alternatives are reported besides each token's log-probability, 0 for none.
    """

    prompt: Sequence[int]
    sampling: SamplingConfig
    stream: int = 0
    samples: int = 1
    stop_ids: Sequence[int] = ()
    stop_strings: StopStrings | None = None
    constraint: Constraint | None = None
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    log_probs: int | None = None

    @property
    def search(self) -> str:
        """The loop that answers it: "sampling" (greedy too), "beam" or "contrastive"."""
        if self.sampling.num_beams > 1:
            return "beam"
        return "contrastive" if self.sampling.penalty_alpha else "sampling"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSequence:
    """One continuation.

    Attributes:
        tokens: new token ids, without the stop token.
        reason: why it ended: "stop" (a stop token, or the end of a constraint), "stop_string" or "length".
        text: `tokens` decoded, up to the stop string; None without a tokenizer.
        log_probs: natural log-probability of each token under the model itself (no temperature, no penalty), if asked for.
        alternatives: for each token the most likely (id, log-probability), if asked for.
    """

    tokens: list[int]
    reason: str
    text: str | None = None
    log_probs: list[float] | None = None
    alternatives: list[list[tuple[int, float]]] | None = None

    @property
    def stopped(self) -> bool:
        """Whether the answer came to its own end."""
        return self.reason != "length"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """Tokens whose log-probabilities are asked for.

    Attributes:
        prompt: token ids, bos included.
        continuations: what may follow it; each is scored by itself, and the prompt is read once.
        prompt_log_probs: whether the prompt's own tokens are scored, too.
        alternatives: how many likely tokens are reported besides each token that is scored.
    """

    prompt: Sequence[int]
    continuations: Sequence[Sequence[int]] = ()
    prompt_log_probs: bool = False
    alternatives: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class ScoredTokens:
    """Natural log-probability of each token under the model itself, whether it is a likeliest one, and of each the most
    likely (id, log-probability), as many as were asked for."""

    log_probs: list[float]
    greedy: list[bool]
    alternatives: list[list[tuple[int, float]]]

    @property
    def log_prob(self) -> float:
        """Of all tokens together."""
        return sum(self.log_probs)

    def with_most(self, alternatives: int) -> "ScoredTokens":
        """The same with at most so many alternatives."""
        return dataclasses.replace(self, alternatives=[likely[:alternatives] for likely in self.alternatives])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a `ScoreRequest` asks for; `prompt` has all its tokens but the first, which follows nothing."""

    continuations: list[ScoredTokens]
    prompt: ScoredTokens | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Delta:
    """What a step added to an answer: its tokens, and the text that is certain now; `completion` with the last one."""

    tokens: list[int]
    text: str
    completion: FinishedSequence | None = None


def check_request(request: Request, number: int, vocabulary: int, most_positions: int) -> None:
    """Raises `UserError` for what cannot be generated; `number` is the prompt's in its call."""
    check_sampling(request.sampling)
    prompt = request.prompt
    given = {"token id": prompt, "stop id": request.stop_ids, "biased id": request.logit_bias}
    _check_tokens(prompt, number, vocabulary, given)
    check_length(number, len(prompt), request.sampling.max_new_tokens, most_positions)
    _check_search(request, vocabulary)
    if request.samples < 1:
        raise UserError(f"samples is {request.samples}; give a value of at least 1.")
    if request.log_probs is not None and not 0 <= request.log_probs <= MOST_ALTERNATIVES:
        raise UserError(f"log_probs is {request.log_probs}; give 0 to {MOST_ALTERNATIVES} alternatives.")
    if len(request.logit_bias) > MOST_BIASES:
        raise UserError(f"logit_bias has {len(request.logit_bias)} tokens; give at most {MOST_BIASES}.")
    finite = all(abs(value) <= 100 for value in request.logit_bias.values())
    if not finite:
        raise UserError("logit_bias has a value beyond 100; give values from -100 (never) to 100 (always).")


def check_length(number: int, prompt: int, new_tokens: int, most_positions: int) -> None:
    """Raises `UserError` where `prompt` tokens and `new_tokens` are more than the model has positions."""
    if prompt + new_tokens > most_positions:
        raise UserError(
            f"prompt {number} has {prompt} tokens, which with {new_tokens} new ones exceeds the model's"
            f" {most_positions} positions; shorten it or lower sampling.max_new_tokens."
        )


def check_score(request: ScoreRequest, number: int, vocabulary: int, most_positions: int) -> None:
    """Raises `UserError` for what cannot be scored; `number` is the prompt's in its call."""
    prompt, longest = request.prompt, max(map(len, request.continuations), default=0)
    given = {"token id": prompt, "continued id": [token for tokens in request.continuations for token in tokens]}
    _check_tokens(prompt, number, vocabulary, given)
    if len(prompt) + longest > most_positions:
        raise UserError(
            f"prompt {number} has {len(prompt)} tokens, which with a continuation of {longest} exceeds the model's"
            f" {most_positions} positions; shorten it."
        )
    if not 0 <= request.alternatives <= MOST_ALTERNATIVES:
        raise UserError(f"alternatives is {request.alternatives}; give 0 to {MOST_ALTERNATIVES}.")


def _check_tokens(prompt: Sequence[int], number: int, vocabulary: int, given: Mapping[str, Iterable[int]]) -> None:
    """Whether there is a prompt, and all `given` ids, by what they are called, are in the vocabulary."""
    if not len(prompt):
        raise UserError(f"prompt {number} is empty; give at least one token, such as bos.")
    for what, ids in given.items():
        wrong = [token for token in ids if not 0 <= token < vocabulary]
        if wrong:
            raise UserError(
                f"prompt {number} has the {what} {wrong[0]}, the model knows 0 to {vocabulary - 1}; "
                "use the tokenizer that belongs to the weights."
            )


def broken_logits(number: int, new_tokens: int) -> UserError:
    """The error for logits that are not finite."""
    return UserError(
        f"the model's logits for prompt {number} are not finite after {new_tokens} new tokens: its weights are broken or too "
        "large for their dtype; check the checkpoint or use float32."
    )


def _check_search(request: Request, vocabulary: int) -> None:
    """Beam search and contrastive search draw nothing, and know neither masks nor bias."""
    sampling = request.sampling
    if request.search == "sampling":
        return
    if sampling.num_beams > 1 and sampling.penalty_alpha:
        raise UserError("sampling has both num_beams and penalty_alpha; choose beam search or contrastive search.")
    asked = {
        "a constraint": request.constraint is not None,
        "stop strings": request.stop_strings is not None,
        "logit_bias": bool(request.logit_bias),
        "log_probs": request.log_probs is not None,
        "min_p": sampling.min_p > 0,
    }
    unknown = [name for name, wanted in asked.items() if wanted]
    if unknown:
        raise UserError(f"{request.search} search does not work with {', '.join(unknown)}; leave it out, or sample.")
    going_on = vocabulary - len(set(request.stop_ids))
    if request.search == "beam" and sampling.num_beams > going_on:
        raise UserError(
            f"sampling.num_beams is {sampling.num_beams}, but only {going_on} tokens do not end an answer; lower it, or give "
            "fewer stop ids."
        )
    most = sampling.num_beams if request.search == "beam" else 1
    if request.samples > most:
        raise UserError(
            f"{request.search} search has {most} answers, {request.samples} samples were asked for; lower samples."
        )
