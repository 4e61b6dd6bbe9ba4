"""Chat with a model: replies to messages, the reference recipe's functions on strings, an interactive conversation."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from keras_hub.models import GemmaBackbone

from gemma_keras.config.errors import UserError
from gemma_keras.config.schema import SamplingConfig
from gemma_keras.inference.generation import Generator
from gemma_keras.models.compute_plan import ONE_DEVICE, ComputePlan
from gemma_keras.models.forward import Params
from gemma_keras.text.templates import Message, Messages, Template, apply_chat_template
from gemma_keras.text.tokenizer import Tokenizer

__all__ = ["Answer", "ChatModel", "apply_chat_template", "conversation", "generate_response"]

_CLOSED_TURN, _MODEL_TURN = "<end_of_turn><eos>\n", "<start_of_turn>model\n"


class Model(Protocol):
    """Anything with a backbone and its params, such as `ChatModel` and `Generator`."""

    @property
    def backbone(self) -> GemmaBackbone: ...

    @property
    def params(self) -> Params: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A decoded answer; `ended` is False where `max_new_tokens` cut it off."""

    text: str
    ended: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatModel:
    """A model that answers messages, `{"role": "system" | "user" | "model", "content": str}`.

    Content can never forge a control token, whatever it spells. `plan` says how the weights lie on devices.

    Raises:
        UserError: tokenizer and weights have vocabularies of different sizes.
    """

    tokenizer: Tokenizer
    backbone: GemmaBackbone
    params: Params
    template: Template
    plan: ComputePlan = ONE_DEVICE

    def __post_init__(self) -> None:
        _check_vocabulary(self.tokenizer, self.backbone)

    def reply(self, messages: Messages, sampling: SamplingConfig) -> str:
        """The model's answer to one conversation."""
        return self.reply_batch([messages], sampling)[0]

    def reply_batch(self, conversations: Sequence[Messages], sampling: SamplingConfig) -> list[str]:
        """The model's answer to each conversation, generated together."""
        return [answer.text for answer in self.answer_batch(conversations, sampling)]

    def answer_batch(self, conversations: Sequence[Messages], sampling: SamplingConfig) -> list[Answer]:
        """As `reply_batch`, with whether each answer came to its own end."""
        encoded = self.template.encode_batch(self.tokenizer, conversations, add_generation_prompt=True)
        return _answers(self, self.tokenizer, [row.ids.tolist() for row in encoded], sampling)

    def prompt_length(self, messages: Messages) -> int:
        """Tokens of the prompt that a conversation makes."""
        return len(self.template.encode(self.tokenizer, messages, add_generation_prompt=True)[0])


def generate_response(
    model: Model,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int = 512,
    temperature: float = 0.7,
    top_p: float = 0.95,
    repetition_penalty: float = 1.1,
) -> str:
    """The model's answer to a rendered prompt, such as `apply_chat_template` returns.

    Control literals in `prompt` (`<start_of_turn>`, `<eos>`, ...) become control tokens wherever they stand, so text
    from others belongs into messages (`ChatModel.reply`) instead. A bos is put in front unless the prompt has one;
    after a closed turn, the opening of the model's turn is added. The same call gives the same answer.

    Raises:
        UserError: as `Generator.generate`, or a tokenizer that does not belong to the model.
    """
    _check_vocabulary(tokenizer, model.backbone)
    if prompt.endswith(_CLOSED_TURN):
        prompt += _MODEL_TURN
    ids = tokenizer.encode_with_control(prompt)
    if ids[:1] != [tokenizer.bos_id]:
        ids = [tokenizer.bos_id, *ids]
    sampling = SamplingConfig(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, repetition_penalty=repetition_penalty
    )
    return _answers(model, tokenizer, [ids], sampling)[0].text


def _typed_line() -> str:
    return input("> ")


def conversation(
    model: ChatModel,
    sampling: SamplingConfig,
    read: Callable[[], str] = _typed_line,
    system: str = "",
) -> Iterator[str]:
    """The model's answers to one line after another, the whole conversation in view; ends at EOF or Ctrl-C.

    The oldest exchanges are left out once the conversation is too long for the model. A line that cannot be answered
    yields the reason in brackets and is forgotten. Each answer has its own random draws.
    """
    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    exchanges: list[Message] = []
    turn = 0
    try:
        while True:
            line = read().strip()
            if not line:
                continue
            exchanges.append({"role": "user", "content": line})
            _forget_oldest(model, opening, exchanges, sampling.max_new_tokens)
            try:
                answer = model.reply([*opening, *exchanges], dataclasses.replace(sampling, seed=sampling.seed + turn))
            except UserError as error:
                exchanges.pop()
                yield f"[{error}]"
                continue
            exchanges.append({"role": "model", "content": answer})
            turn += 1
            yield answer
    except (EOFError, KeyboardInterrupt):
        return


def _forget_oldest(model: ChatModel, opening: Messages, exchanges: list[Message], new_tokens: int) -> None:
    """Drops pairs of question and answer from the front until the prompt and its answer fit."""
    most = model.backbone.architecture.max_position
    while len(exchanges) > 2 and model.prompt_length([*opening, *exchanges]) + new_tokens > most:
        del exchanges[:2]


def _answers(
    model: Model, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], sampling: SamplingConfig
) -> list[Answer]:
    stop_ids = [tokenizer.end_of_turn_id, tokenizer.eos_id]
    generated = Generator(backbone=model.backbone, params=model.params).generate(prompts, sampling, stop_ids)
    # The template puts a newline between an answer and <end_of_turn>.
    return [Answer(tokenizer.decode(answer.tokens).strip("\n\r"), answer.stopped) for answer in generated]


def _check_vocabulary(tokenizer: Tokenizer, backbone: GemmaBackbone) -> None:
    expected = backbone.architecture.vocabulary_size
    if tokenizer.vocabulary_size != expected:
        raise UserError(
            f"the tokenizer {tokenizer.path} has {tokenizer.vocabulary_size} pieces, the model {expected} embeddings; "
            "use the tokenizer that belongs to the weights."
        )
