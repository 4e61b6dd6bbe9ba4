"""A plain `keras_hub.models.GemmaCausalLM` as a `LanguageModel`, through `generate` and this package's samplers.

Every call has its own settings, and its draws depend on its seed alone, as with `ChatModel`. Free calls run together;
constrained ones with those of the same constraint. Shapes are rounded up, so that few programs are compiled.

Axes: B rows, T places.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras_hub.models import GemmaCausalLM

from gemma_keras.config.errors import UserError
from gemma_keras.inference.buckets import bucket, power_of_two
from gemma_keras.inference.constraints.constraint import Constraint
from gemma_keras.inference.keras_hub.samplers import ConstrainedSampler, PenaltySampler
from gemma_keras.inference.language_model import Ask, Reply, check_vocabulary
from gemma_keras.inference.requests import check_length
from gemma_keras.inference.sampling import check_sampling
from gemma_keras.text.foreign_template import ChatTemplate
from gemma_keras.text.tokenizer import Tokenizer

_KEPT_SAMPLERS = 16  # with their compiled programs

Form = tuple[Constraint, int] | None
"""A constraint and the tokens within which it is met; None: free."""


class KerasChat:
    """Answers calls with a causal model of keras_hub.

    Args:
        causal_lm: without a preprocessor. Its sampler is set anew for every batch.
        tokenizer: the model's.
        template: how conversations are written.
        max_position: most tokens of a prompt and its answer together.
        batch_rows: calls that are generated together at most.

    Raises:
        UserError: a model with a preprocessor, or a tokenizer that does not belong to it.
    """

    def __init__(
        self,
        causal_lm: GemmaCausalLM,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        max_position: int = 8192,
        batch_rows: int = 32,
    ):
        if causal_lm.preprocessor is not None:
            raise UserError(
                "the GemmaCausalLM has a preprocessor, which reads no messages; build it with preprocessor=None."
            )
        check_vocabulary(tokenizer, causal_lm.backbone.vocabulary_size)
        self._causal_lm, self._tokenizer, self._template = causal_lm, tokenizer, template
        self._max_position, self._batch_rows = max_position, batch_rows
        self._stop_ids = template.stop_ids(tokenizer)
        self._compiled = functools.lru_cache(maxsize=_KEPT_SAMPLERS)(self._compile)

    def answer(self, asks: Sequence[Ask]) -> list[Reply]:
        """The reply to each call.

        Raises:
            UserError: a prompt that is too long, an impossible setting, or an impossible constraint.
        """
        prompts = self._template.prompts(self._tokenizer, [ask.messages for ask in asks])
        forms: dict[Form, list[int]] = {}
        for number, (ask, prompt) in enumerate(zip(asks, prompts)):
            check_sampling(ask.sampling)
            check_length(number, len(prompt), ask.max_new_tokens, self._max_position)
            form = (ask.constraint, ask.max_new_tokens) if ask.constraint is not None else None
            forms.setdefault(form, []).append(number)
        replies: dict[int, Reply] = {}
        for form, numbers in forms.items():
            # Prompts of like lengths share a batch, whose cost is that of its longest row.
            numbers.sort(key=lambda number: len(prompts[number]) + asks[number].max_new_tokens)
            for start in range(0, len(numbers), self._batch_rows):
                rows = numbers[start : start + self._batch_rows]
                answers = self._generate(form, [asks[row] for row in rows], [prompts[row] for row in rows])
                replies |= dict(zip(rows, answers))
        return [replies[number] for number in range(len(asks))]

    def _generate(self, form: Form, asks: list[Ask], prompts: list[list[int]]) -> list[Reply]:
        """Replies of one batch."""
        # Copies of the last row fill the batch up to a size that is compiled once.
        rows = [*range(len(asks)), *[len(asks) - 1] * (power_of_two(len(asks)) - len(asks))]
        needed = max(len(prompt) + ask.max_new_tokens for ask, prompt in zip(asks, prompts))
        tokens = np.full((len(rows), bucket(needed)), self._tokenizer.pad_id, np.int32)
        mask = np.zeros(tokens.shape, bool)
        for index, row in enumerate(rows):
            tokens[index, : len(prompts[row])], mask[index, : len(prompts[row])] = prompts[row], True
        self._use(form).set_rows([asks[row].sampling for row in rows])
        written = self._causal_lm.generate({"token_ids": tokens, "padding_mask": mask}, stop_token_ids=self._stop_ids)
        return [
            self._reply(written["token_ids"][index, len(prompt) :], len(prompt), ask)
            for index, (ask, prompt) in enumerate(zip(asks, prompts))
        ]

    def _reply(self, written: np.ndarray, prompt_tokens: int, ask: Ask) -> Reply:
        """The answer among the tokens after a prompt. Under a constraint it is whole, with or without a stop token."""
        answer = written[: ask.max_new_tokens].tolist()
        stops = [place for place, token in enumerate(answer) if token in self._stop_ids]
        if stops:
            answer = answer[: stops[0]]
        text = self._tokenizer.decode(answer)
        if ask.constraint is not None:
            return Reply(text, prompt_tokens, len(answer), True)
        # The template puts a newline between an answer and <end_of_turn>.
        return Reply(text.strip("\n\r"), prompt_tokens, len(answer), bool(stops))

    def _use(self, form: Form) -> PenaltySampler:
        """Has the model generate with the sampler of `form`."""
        sampler, generate = self._compiled(form)
        self._causal_lm.sampler, self._causal_lm.generate_function = sampler, generate
        return sampler

    def _compile(self, form: Form) -> tuple[PenaltySampler, Any]:
        sampler = PenaltySampler()
        if form is not None:
            sampler = ConstrainedSampler(form[0], self._tokenizer.path, max_new_tokens=form[1])
        self._causal_lm.compile(sampler=sampler)
        return sampler, self._causal_lm.make_generate_function()
