"""Chat with a model: replies to messages, the reference recipe's functions on strings, an interactive conversation."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

from keras_hub.models import Backbone

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import InferenceConfig, SamplingConfig
from gemma_keras.inference.engine import Engine, with_streams
from gemma_keras.inference.language_model import Ask, Reply, check_vocabulary
from gemma_keras.inference.requests import Delta, FinishedSequence, Request
from gemma_keras.inference.text_stream import StopStrings
from gemma_keras.models.forward import Params
from gemma_keras.parallel.plan import ONE_DEVICE, ComputePlan
from gemma_keras.text.foreign_template import ChatTemplate
from gemma_keras.text.templates import Message, Messages, apply_chat_template
from gemma_keras.text.tokenizer import Tokenizer

__all__ = ["ChatModel", "apply_chat_template", "conversation", "generate_response"]

_CLOSED_TURN, _MODEL_TURN = "<end_of_turn><eos>\n", "<start_of_turn>model\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatModel:
    """A model that answers messages, `{"role": "system" | "user" | "model", "content": str}`.

    Content can never forge a control token, whatever it spells. `plan` says how the weights lie on devices, `inference` how
    answers are generated.

    Raises:
        UserError: tokenizer and weights have vocabularies of different sizes.
    """

    tokenizer: Tokenizer
    backbone: Backbone
    params: Params
    template: ChatTemplate
    plan: ComputePlan = ONE_DEVICE
    inference: InferenceConfig = dataclasses.field(default_factory=InferenceConfig)

    def __post_init__(self) -> None:
        check_vocabulary(self.tokenizer, self.backbone.architecture.pieces)

    @functools.cached_property
    def engine(self) -> Engine:
        """What generates the answers."""
        chosen = self.inference
        return Engine(
            self.backbone, self.params, self.tokenizer, plan=self.plan, max_rows=chosen.max_rows,
            cache_dtype=chosen.cache, prefix_tokens=chosen.prefix_tokens,
        )  # fmt: skip

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return self.template.stop_ids(self.tokenizer)

    def reply(self, messages: Messages, sampling: SamplingConfig) -> str:
        """The model's answer to one conversation."""
        return self.reply_batch([messages], sampling)[0]

    def reply_batch(self, conversations: Sequence[Messages], sampling: SamplingConfig) -> list[str]:
        """The model's answer to each conversation, generated together."""
        return [answer.text for answer in self.answer_batch(conversations, sampling)]

    def answer_batch(self, conversations: Sequence[Messages], sampling: SamplingConfig) -> list[Reply]:
        """As `reply_batch`, with whether each answer came to its own end."""
        return self._replies(self.requests(conversations, sampling))

    def answer_each(self, conversations: Sequence[Messages], sampling: SamplingConfig) -> list[Reply | UserError]:
        """As `answer_batch`, but a conversation that cannot be answered has the reason in its place; no other one suffers.

        The answers are those of `answer_batch` over all of them.
        """
        asked = [self._request_or_error(messages, sampling, n) for n, messages in enumerate(conversations)]
        requests = [request for request in asked if isinstance(request, Request)]
        found = zip(requests, self.engine.generate_each(requests), strict=True)
        answers = iter([one if isinstance(one, UserError) else _reply(request, one[0]) for request, one in found])
        return [one if isinstance(one, UserError) else next(answers) for one in asked]

    def _request_or_error(self, messages: Messages, sampling: SamplingConfig, stream: int) -> Request | UserError:
        try:
            return dataclasses.replace(self.request(messages, sampling), stream=stream)
        except UserError as error:
            return error

    def stream(self, messages: Messages, sampling: SamplingConfig) -> Iterator[Delta]:
        """The answer to one conversation piece by piece; blanks at its ends are not taken off."""
        return self.engine.stream(self.request(messages, sampling))

    def answer(self, asks: Sequence[Ask]) -> list[Reply]:
        """The reply to each call (`LanguageModel`), all of them generated together."""
        prompts = self.template.prompts(self.tokenizer, [ask.messages for ask in asks])
        requests = [
            Request(prompt=ids, sampling=ask.sampling, stop_ids=self.stop_ids, constraint=ask.constraint)
            for ids, ask in zip(prompts, asks, strict=True)
        ]
        return self._replies(requests)

    def _replies(self, requests: Sequence[Request]) -> list[Reply]:
        answers = self.engine.generate(requests)
        return [_reply(request, samples[0]) for request, samples in zip(requests, answers, strict=True)]

    def request(self, messages: Messages, sampling: SamplingConfig) -> Request:
        """What the engine is asked for the answer to a conversation; `dataclasses.replace` asks for more.

        Raises:
            UserError: a conversation that the template cannot write.
        """
        return self.requests([messages], sampling)[0]

    def requests(self, conversations: Sequence[Messages], sampling: SamplingConfig) -> list[Request]:
        """A request for each conversation, each with a stream of random numbers of its own.

        Raises:
            UserError: a conversation that the template cannot write.
        """
        stop_strings = StopStrings(sampling.stop) if sampling.stop else None
        prompts = self.template.prompts(self.tokenizer, conversations)
        return with_streams(
            [Request(prompt=p, sampling=sampling, stop_ids=self.stop_ids, stop_strings=stop_strings) for p in prompts]
        )

    def prompt_length(self, messages: Messages) -> int:
        """Tokens of the prompt that a conversation makes."""
        (ids,) = self.template.prompts(self.tokenizer, [messages])
        return len(ids)


def generate_response(
    model: ChatModel | Engine,
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
        UserError: as `Engine.generate`, or a tokenizer that does not belong to the model.
    """
    check_vocabulary(tokenizer, model.backbone.architecture.pieces)
    if prompt.endswith(_CLOSED_TURN):
        prompt += _MODEL_TURN
    ids = tokenizer.encode_with_control(prompt)
    if ids[:1] != [tokenizer.bos_id]:
        ids = [tokenizer.bos_id, *ids]
    sampling = SamplingConfig(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, repetition_penalty=repetition_penalty
    )
    engine = model if isinstance(model, Engine) else model.engine
    stop_ids = (tokenizer.end_of_turn_id, tokenizer.eos_id)
    ((completion,),) = engine.generate([Request(prompt=ids, sampling=sampling, stop_ids=stop_ids)])
    return tokenizer.decode(completion.tokens).strip("\n\r")


def conversation(
    model: ChatModel,
    sampling: SamplingConfig,
    read: Callable[[], str] = lambda: input("> "),
    system: str = "",
    show: Callable[[str], None] = lambda text: None,
    refused: Callable[[str, UserError], None] = lambda line, error: None,
) -> Iterator[str]:
    """The model's answers to one line after another, the whole conversation in view; ends at EOF or Ctrl-C.

    `show` gets an answer piece by piece, while it is generated. The oldest exchanges are left out once the conversation is
    too long for the model. A line that cannot be answered yields the reason in brackets and is forgotten, which `refused` is
    told with both; what came before it is kept. Each answer has its own random draws.
    """
    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    exchanges: list[Message] = []
    turn = 0
    try:
        while True:
            line = read().strip()
            if not line:
                continue
            asked: list[Message] = [*exchanges, {"role": "user", "content": line}]
            _forget_oldest(model, opening, asked, sampling.max_new_tokens)
            try:
                answer = _shown(
                    model, [*opening, *asked], dataclasses.replace(sampling, seed=sampling.seed + turn), show
                )
            except UserError as error:
                refused(line, error)
                show(f"[{error}]")
                yield f"[{error}]"
                continue
            exchanges = [*asked, {"role": "model", "content": answer}]
            turn += 1
            yield answer
    except (EOFError, KeyboardInterrupt):
        return


def _shown(model: ChatModel, messages: Messages, sampling: SamplingConfig, show: Callable[[str], None]) -> str:
    """The answer, which `show` gets while it is generated."""
    if sampling.num_beams > 1 or sampling.penalty_alpha:
        answer = model.reply(messages, sampling)
        show(answer)
        return answer
    pieces: list[str] = []
    for delta in model.stream(messages, sampling):
        # Line ends at the beginning are not part of the answer, those at the end belong to the template.
        text = delta.text if pieces else delta.text.lstrip("\n\r")
        pieces += [text] if text else []
        show(text)
    return "".join(pieces).rstrip("\n\r")


def _forget_oldest(model: ChatModel, opening: Messages, exchanges: list[Message], new_tokens: int) -> None:
    """Drops pairs of question and answer from the front until the prompt and its answer fit."""
    most = model.backbone.architecture.max_position
    while len(exchanges) > 2 and model.prompt_length([*opening, *exchanges]) + new_tokens > most:
        del exchanges[:2]


def _reply(request: Request, completion: FinishedSequence) -> Reply:
    """The answer, without line ends around it unless a constraint made it."""
    text = completion.text or ""
    text = text.strip("\n\r") if request.constraint is None else text
    return Reply(text, len(request.prompt), len(completion.tokens), completion.stopped)
