"""What a solver sees of a model: calls with settings of their own, answered together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import SamplingConfig
from gemma_keras.inference.constraints.constraint import Constraint
from gemma_keras.text.templates import Messages
from gemma_keras.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One call of a model.

    Attributes:
        messages: the conversation, which ends with the user's turn.
        temperature: 0: greedy.
        max_new_tokens: longest answer.
        top_p: share of the probability that is drawn from; 1: all of it.
        repetition_penalty: on tokens of the prompt and of the answer; 1: none.
        seed: of the draws, which depend on it alone, wherever the call stands in a batch.
        constraint: what the whole answer must match; None: nothing.
    """

    messages: Messages
    temperature: float = 0.7
    max_new_tokens: int = 512
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    constraint: Constraint | None = None

    @property
    def sampling(self) -> SamplingConfig:
        """Its settings."""
        return SamplingConfig(
            max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p,
            repetition_penalty=self.repetition_penalty, seed=self.seed,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one call and its size in tokens; `ended` is False where `max_new_tokens` cut it off."""

    text: str
    prompt_tokens: int
    new_tokens: int
    ended: bool


class LanguageModel(Protocol):
    """Anything that answers calls."""

    def answer(self, asks: Sequence[Ask]) -> list[Reply]:
        """The reply to each call. Calls are independent of each other and run as one batch.

        Raises:
            UserError: a call that this model cannot answer, such as a prompt that is too long for it.
        """
        ...


def check_vocabulary(tokenizer: Tokenizer, embeddings: int) -> None:
    """Raises `UserError` where a tokenizer does not belong to a model with so many embeddings."""
    if tokenizer.vocabulary_size != embeddings:
        raise UserError(
            f"the tokenizer {tokenizer.path} has {tokenizer.vocabulary_size} pieces, the model {embeddings} embeddings; "
            "use the tokenizer that belongs to the weights."
        )
