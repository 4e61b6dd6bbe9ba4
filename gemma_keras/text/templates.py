"""Chat templates: messages to blocks, and blocks to text or to token ids.

Every message becomes one block, written by the row of its role in the template's table:

    before    "<start_of_turn>model\\n"        PROMPT
    content   the message's own text          CONTENT in a model turn, else PROMPT
    closing   "\\n<end_of_turn><eos>"          CLOSING in a model turn (what teaches the model to stop), else PROMPT
    after     "\\n"                            PROMPT

Loss weights follow from the kinds; the block of a message that is `UNLEARNT` is PADDING, which never has any.
In the template's own texts control literals are control tokens; in content they are ordinary text. A template's texts meet
content at a newline or a control token, over which SentencePiece does not merge (newlines are user-defined pieces), so a
conversation has the same ids in parts, in one string and in transformers.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gemma_keras.config.errors import UserError
from gemma_keras.text.tokenizer import Tokenizer

PADDING, PROMPT, CLOSING, CONTENT = 0, 1, 2, 3
ROLES = ("system", "user", "model")
GIVEN = "\n\n所给内容：\n"
"""What stands between a task and the text that it is about, where a corpus has them in two fields."""

Message = dict[str, str]
Messages = Sequence[Message]
UNLEARNT = {"loss": "none"}
"""What a message has besides role and content if nothing is to be learnt from it."""


def is_unlearnt(message: Message) -> bool:
    return UNLEARNT.items() <= message.items()


_KINDS = dict.fromkeys(ROLES, bytes([PROMPT] * 4)) | {"model": bytes([PROMPT, CONTENT, CLOSING, PROMPT])}
"""Of the four texts of a block."""


class Block(NamedTuple):
    """How a template writes the messages of one role; see the head of this module."""

    before: str
    closing: str
    after: str


class Encoding(NamedTuple):
    """A conversation as tokens.

    Attributes:
        ids: i32[n], starting with bos.
        kinds: u8[n], the kind of each token.
        ends: number of tokens up to the end of each model turn's block, what stands after it included.
    """

    ids: np.ndarray
    kinds: np.ndarray
    ends: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A way to write a conversation.

    Attributes:
        name: key in `TEMPLATES`.
        blocks: how the messages of each role are written; without "system", a system message at the front becomes the
            beginning of the user's message after it, with an empty line between them.
        stripped: characters taken from both ends of content, for they would merge with the template's; None: whitespace.
        given: what is written for the first `GIVEN` in a user's message; empty: just that.
        source: the Jinja text of the folder that the template was found in, which exports keep; empty: ours.
    """

    name: str
    blocks: Mapping[str, Block]
    stripped: str | None = "\n\r"
    given: str = ""
    source: str = ""

    def render(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        """The conversation as one string, without bos.

        Raises:
            UserError: a message has an unknown role, content that is no string, or no place in this template.

        >>> TEMPLATES["gemmalm_zh"].render([{"role": "user", "content": "你好"}])
        '<start_of_turn>user\\n你好\\n<end_of_turn><eos>\\n'
        """
        texts = []
        for role, content in self._turns(messages):
            before, closing, after = self.blocks[role]
            texts += [before, content, closing, after]
        return "".join(texts) + (self.blocks["model"].before if add_generation_prompt else "")

    def encode(
        self, tokenizer: Tokenizer, messages: Messages, add_generation_prompt: bool = False
    ) -> tuple[list[int], list[int]]:
        """Token ids, starting with bos, and the kind of each; content never yields a control id."""
        encoding = self.encode_batch(tokenizer, [messages], add_generation_prompt)[0]
        return encoding.ids.tolist(), encoding.kinds.tolist()

    def encode_batch(
        self, tokenizer: Tokenizer, conversations: Sequence[Messages], add_generation_prompt: bool = False
    ) -> list[Encoding]:
        """Each conversation as tokens; all contents go through SentencePiece in one call.

        The arrays are views of the batch's, which stay in memory as long as any of them.
        """
        rows = [self._turns(messages) for messages in conversations]
        contents = iter(tokenizer.encode_content_arrays([content for turns in rows for _, content in turns]))
        own = {
            role: [np.array(tokenizer.encode_with_control(text), np.int32) for text in block]
            for role, block in self.blocks.items()
        }
        first = np.array([tokenizer.bos_id], np.int32)
        last = [own["model"][0]] if add_generation_prompt else []

        pieces: list[np.ndarray] = []
        kinds = bytearray()
        places = []  # of each row: its first piece, the piece after its last, and the piece after each model turn
        for turns, messages in zip(rows, conversations, strict=True):
            start, ends = len(pieces), []
            pieces.append(first)
            kinds.append(PROMPT)
            for (role, _), block_kinds in zip(turns, self._kinds(messages), strict=True):
                before, closing, after = own[role]
                pieces += (before, next(contents), closing, after)
                kinds += block_kinds
                if role == "model":
                    ends.append(len(pieces))
            pieces += last
            kinds += bytes([PROMPT] * len(last))
            places.append((start, len(pieces), ends))
        return _rows(pieces, kinds, places)

    def prompts(self, tokenizer: Tokenizer, conversations: Sequence[Messages]) -> list[list[int]]:
        """Token ids of each conversation, from bos to the opening of the model's answer."""
        encoded = self.encode_batch(tokenizer, conversations, add_generation_prompt=True)
        return [row.ids.tolist() for row in encoded]

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return tokenizer.end_of_turn_id, tokenizer.eos_id

    def _turns(self, messages: Messages) -> list[tuple[str, str]]:
        """Role and content of each block."""
        turns = [self._turn(message) for message in messages]
        return turns if "system" in self.blocks else folded(turns, f"the template {self.name}")

    def _kinds(self, messages: Messages) -> list[bytes]:
        """The kinds of the texts of each block of `_turns`."""
        kinds = [bytes([PADDING] * 4) if is_unlearnt(m) else _KINDS[m["role"]] for m in messages]
        folds = "system" not in self.blocks and messages and messages[0]["role"] == "system"
        return kinds[1:] if folds else kinds

    def _turn(self, message: Message) -> tuple[str, str]:
        role, content = checked(message)
        content = content.strip(self.stripped)
        if self.given and role == "user":
            content = content.replace(GIVEN, self.given, 1)
        return role, content


def checked(message: Message) -> tuple[str, str]:
    """Role and content of a message.

    Raises:
        UserError: an unknown role, or content that is no string.
    """
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise UserError(f"a message has the role {role!r}; use one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise UserError(f"the content of a {role} message is {type(content).__name__}; give a string")
    return role, content


def folded(turns: list[tuple[str, str]], template: str) -> list[tuple[str, str]]:
    """The turns with the system's text at the front of the user's first.

    Raises:
        UserError: a system message stands elsewhere than before the first user's.
    """
    roles = [role for role, _ in turns]
    if "system" not in roles:
        return turns
    if roles[:2] != ["system", "user"] or "system" in roles[1:]:
        raise UserError(
            f"{template} writes a system message into the user's after it, but the roles are "
            f"{', '.join(roles[:8])}; give one system message, then the user's"
        )
    return [("user", f"{turns[0][1]}\n\n{turns[1][1]}".strip()), *turns[2:]]


def _rows(pieces: list[np.ndarray], kinds: bytearray, places: list[tuple[int, int, list[int]]]) -> list[Encoding]:
    """Pieces in order, the kind of each, and where each row has its pieces, as one encoding a row."""
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    bounds = [0, *np.cumsum(lengths).tolist()]
    tokens = np.concatenate(pieces) if pieces else np.empty(0, np.int32)
    token_kinds = np.repeat(np.frombuffer(kinds, np.uint8), lengths)
    encodings = []
    for first, stop, ends in places:
        start, end = bounds[first], bounds[stop]
        encodings.append(Encoding(tokens[start:end], token_kinds[start:end], [bounds[at] - start for at in ends]))
    return encodings


def _labelled(name: str, system: str, user: str, model: str, given: str = "") -> Template:
    """A template of plain labels, a line each, in which only a model turn ends with a control token."""
    blocks = {
        "system": Block(system, "", "\n\n"),
        "user": Block(user, "", "\n\n"),
        "model": Block(model, "<eos>", "\n"),
    }
    return Template(name=name, blocks=blocks, given=given)


TEMPLATES = {
    template.name: template
    for template in (
        Template(
            name="gemmalm_zh",
            blocks={role: Block(f"<start_of_turn>{role}\n", "\n<end_of_turn><eos>", "\n") for role in ROLES},
        ),
        Template(
            name="gemma",
            blocks={role: Block(f"<start_of_turn>{role}\n", "<end_of_turn>", "\n") for role in ("user", "model")},
            stripped=None,
        ),
        _labelled("passage", system="参考资料：\n", user="问：\n", model="答：\n"),
        _labelled("instruction", system="", user="### 指令：\n", model="### 回答：\n", given="\n\n### 输入：\n"),
    )
}
"""By name:

    gemmalm_zh   the reference recipe's, with a block of its own for the system
    gemma        Google's, for Gemma 2 and 3; the system's text opens the user's first message
    passage      a dialogue about a text, which is the system message
    instruction  instruction, input and output; the input is what stands after `GIVEN`

In the last two a user can write a label such as "答：" into a message, where it is ordinary text like any other. What
ends a model turn is a control token in all of them, and that no content can write.
"""


AUTO, DEFAULT = "auto", "gemmalm_zh"
"""A template to be found in the weights' folder, and the one where there is none to be found."""


def get_template(name: str) -> Template:
    """The template called `name`; `auto`, which stages have settled before, is the default one.

    Raises:
        UserError: there is none.
    """
    name = DEFAULT if name == AUTO else name
    if name not in TEMPLATES:
        raise UserError(f"no chat template is called {name!r}; choose one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def apply_chat_template(messages: Messages, add_generation_prompt: bool = False) -> str:
    """A conversation as the plain string of the reference recipe: one block a message and, as there, nothing after it.

    Control literals inside content stay in the string, so whoever parses it again can be misled; `Template.encode`
    is the safe way to token ids.
    """
    return TEMPLATES[DEFAULT].render(messages, add_generation_prompt)


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
