"""Chat templates: messages to spans, and spans to text or to token ids.

A span is either ordinary text or one control token. Each carries a kind, from which the loss weights follow:

    <bos> <start_of_turn> user\\n question \\n <end_of_turn> <eos> \\n      all PROMPT
    <start_of_turn> model\\n                                               PROMPT
    answer                                                                CONTENT
    \\n <end_of_turn> <eos>                                                CLOSING: what teaches the model to stop
    \\n                                                                    PROMPT
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gemma_keras.config.errors import UserError
from gemma_keras.text.tokenizer import Tokenizer

PADDING, PROMPT, CLOSING, CONTENT = 0, 1, 2, 3
ROLES = ("system", "user", "model")

Message = dict[str, str]
Messages = Sequence[Message]


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a rendered conversation.

    Attributes:
        text: its characters, for a control token the token's literal.
        control: whether it is one control token rather than ordinary text.
        kind: PROMPT, CLOSING or CONTENT.
    """

    text: str
    control: bool
    kind: int


@dataclass(frozen=True, slots=True)
class Template:
    """A way to write a conversation, one block a message.

    Attributes:
        name: key in `TEMPLATES`.
        opening: control literal that opens a turn.
        closing: control literals that close it.
        jinja: the same template for Hugging Face tokenizers, with the bos token in front and "assistant" for "model".
    """

    name: str
    opening: str
    closing: tuple[str, ...]
    jinja: str

    def spans(self, messages: Messages) -> list[Span]:
        """The spans of a conversation, without bos.

        Raises:
            UserError: a message has an unknown role or content that is no string.
        """
        spans: list[Span] = []
        for message in messages:
            role, content = _checked(message)
            model_turn = role == "model"
            closing = CLOSING if model_turn else PROMPT
            spans.append(Span(self.opening, True, PROMPT))
            spans.append(Span(f"{role}\n", False, PROMPT))
            spans.append(Span(content, False, CONTENT if model_turn else PROMPT))
            spans.append(Span("\n", False, closing))
            spans.extend(Span(literal, True, closing) for literal in self.closing)
            spans.append(Span("\n", False, PROMPT))
        return spans

    def generation_prompt(self) -> list[Span]:
        """What is appended for the model to answer."""
        return [Span(self.opening, True, PROMPT), Span("model\n", False, PROMPT)]

    def render(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        """The conversation as one string, without bos.

        >>> TEMPLATES["gemmalm_zh"].render([{"role": "user", "content": "你好"}])
        '<start_of_turn>user\\n你好\\n<end_of_turn><eos>\\n'
        """
        spans = self.spans(messages) + (self.generation_prompt() if add_generation_prompt else [])
        return "".join(span.text for span in spans)

    def encode(
        self, tokenizer: Tokenizer, messages: Messages, add_generation_prompt: bool = False
    ) -> tuple[list[int], list[int]]:
        """Token ids, starting with bos, and the kind of each; content never yields a control id."""
        return self.encode_batch(tokenizer, [messages], add_generation_prompt)[0]

    def encode_batch(
        self, tokenizer: Tokenizer, conversations: Sequence[Messages], add_generation_prompt: bool = False
    ) -> list[tuple[list[int], list[int]]]:
        """`encode` of each conversation; all texts go through SentencePiece in one call."""
        ending = self.generation_prompt() if add_generation_prompt else []
        rows = [self.spans(messages) + ending for messages in conversations]
        texts = list(dict.fromkeys(span.text for spans in rows for span in spans if not span.control))
        ids_of = dict(zip(texts, tokenizer.encode_content_batch(texts), strict=True))
        encoded = []
        for spans in rows:
            ids, kinds = [tokenizer.bos_id], [PROMPT]
            for span in spans:
                piece = [tokenizer.control_pieces[span.text]] if span.control else ids_of[span.text]
                ids.extend(piece)
                kinds.extend([span.kind] * len(piece))
            encoded.append((ids, kinds))
        return encoded


TEMPLATES = {
    "gemmalm_zh": Template(
        name="gemmalm_zh",
        opening="<start_of_turn>",
        closing=("<end_of_turn>", "<eos>"),
        jinja=(
            "{{ bos_token }}{% for message in messages %}"
            "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
            "{{ '<start_of_turn>' + role + '\\n' + message['content'].strip('\\n\\r')"
            " + '\\n<end_of_turn><eos>\\n' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
        ),
    )
}


def get_template(name: str) -> Template:
    """The template called `name`.

    Raises:
        UserError: there is none.
    """
    if name not in TEMPLATES:
        raise UserError(f"no chat template is called {name!r}; choose one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def apply_chat_template(messages: Messages, add_generation_prompt: bool = False) -> str:
    """A conversation as the plain string of the reference recipe: one block a message and, as there, nothing after it.

    Control literals inside content stay in the string, so whoever parses it again can be misled; `Template.encode`
    is the safe way to token ids.
    """
    return TEMPLATES["gemmalm_zh"].render(messages, add_generation_prompt)


_BLOCK = re.compile(r"<start_of_turn>(system|user|model)\n(.*?)\n<end_of_turn><eos>\n(?=<start_of_turn>|\Z)", re.DOTALL)


def parse_rendered(text: str) -> list[Message]:
    """The messages of a conversation rendered with `gemmalm_zh`; the inverse of `render`.

    Content is kept as it stands, including blank lines at its ends, which `render` leaves out.

    Raises:
        ValueError: the text does not have the template's form.
    """
    messages: list[Message] = []
    position = 0
    while position < len(text):
        block = _BLOCK.match(text, position)
        if block is None:
            raise ValueError(f"no turn of the template at character {position}")
        messages.append({"role": block[1], "content": block[2]})
        position = block.end()
    if not messages:
        raise ValueError("no turn at all")
    return messages


def _checked(message: Message) -> tuple[str, str]:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise UserError(f"a message has the role {role!r}; use one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise UserError(f"the content of a {role} message is {type(content).__name__}; give a string")
    # A newline at an end would merge with the template's own into another token.
    return role, content.strip("\n\r")
