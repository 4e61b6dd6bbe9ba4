"""A folder's chat template that is none of ours: enough of it for inference.

Jinja writes a conversation twice. Once with a marker in the place of each content, so that what stands between markers is
the template's own text, in which alone control literals are control tokens; and once as it is, which tells how the template
changes content: blanks at its ends may go, anything else is refused. So no content can write a control token, and of a
conversation without such literals the ids are those of transformers.
"""

import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jinja2

from gemma_keras.config.errors import UserError
from gemma_keras.text.jinja_templates import compiled, render
from gemma_keras.text.templates import Messages, Template, checked, folded
from gemma_keras.text.tokenizer import Tokenizer

Turns = list[tuple[str, str]]
"""Role and content of each message."""

_QUESTION = ("user", "为什么？ Why?")
_MARKER = re.compile("\ue000([0-9]+)\ue001")  # of private use, without case and without blanks at its ends
# What templates do to the ends of content, the longest result first.
_STRIPPED: tuple[Callable[[str], str], ...] = (
    str, lambda text: text.strip(" "), lambda text: text.strip("\n"), lambda text: text.strip("\n\r"), str.rstrip,
    str.lstrip, str.strip,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignTemplate:
    """A template that Jinja renders; there are no spans of it to train on.

    Attributes:
        name: what it is called in messages, such as "the chat template of FOLDER".
        source: its Jinja text.
        tokens: the special tokens that it may name, such as `bos_token`.
    """

    name: str
    source: str
    tokens: Mapping[str, str]

    def prompts(self, tokenizer: Tokenizer, conversations: Sequence[Messages]) -> list[list[int]]:
        """Token ids of each conversation, from bos, even where the template writes none, to the model's answer.

        A system message that the template has no place for becomes the beginning of the user's after it.

        Raises:
            UserError: the template refuses a conversation, leaves out, repeats or changes a content; or a message is none.
        """
        return [self._prompt(tokenizer, [checked(message) for message in messages]) for messages in conversations]

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The tokens that end an answer: `<end_of_turn>`, `<eos>` and what the template closes an answer with."""
        try:
            *_, closing = self._own_and_contents([_QUESTION, ("model", "Because.")], False)[0]
        except (UserError, jinja2.TemplateError):
            closing = ""
        literals = tokenizer.split_control(closing)[1:2]
        usual = tokenizer.end_of_turn_id, tokenizer.eos_id
        return tuple(dict.fromkeys((*usual, *(tokenizer.control_pieces[literal] for literal in literals))))

    def check(self) -> None:
        """Tries a single question.

        Raises:
            UserError: the template cannot be used.
        """
        self._parts([_QUESTION])

    def _prompt(self, tokenizer: Tokenizer, turns: Turns) -> list[int]:
        own, contents = self._parts(turns)
        # Text and content between two control tokens are encoded together, as they are in transformers.
        runs, controls = [""], []
        for text, content in zip(own, (*contents, "")):
            for place, part in enumerate(tokenizer.split_control(text)):
                if place % 2:
                    controls.append(tokenizer.control_pieces[part])
                    runs.append("")
                else:
                    runs[-1] += part
            runs[-1] += content
        encoded = tokenizer.encode_content_batch(runs)
        ids = encoded[0]
        for control, run in zip(controls, encoded[1:], strict=True):
            ids += [control, *run]
        return ids if ids[:1] == [tokenizer.bos_id] else [tokenizer.bos_id, *ids]

    def _parts(self, turns: Turns) -> tuple[list[str], list[str]]:
        """The template's own texts of a question to the model, and the contents between them."""
        try:
            try:
                return self._own_and_contents(turns, True)
            except jinja2.TemplateError:
                if [role for role, _ in turns[:2]] != ["system", "user"]:
                    raise
                return self._own_and_contents(folded(turns, self.name), True)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(
                f"{self.name} is no Jinja that can be read ({error.message}, line {error.lineno}); mend it, or name one of our "
                "templates with --config.data.template."
            ) from error
        except jinja2.TemplateError as error:
            roles = ", ".join(role for role, _ in turns[:8])
            raise UserError(
                f"{self.name} does not take messages of the roles {roles} ({error}); give others, or name one of our "
                "templates with --config.data.template."
            ) from error

    def _own_and_contents(self, turns: Turns, add_generation_prompt: bool) -> tuple[list[str], list[str]]:
        template, now = compiled(self.source), datetime.datetime.now()
        # Blanks alone are harmless, and templates may ask whether there is any content.
        places = [place for place, (_, content) in enumerate(turns) if content.strip()]
        marked = [
            (role, f"\ue000{place}\ue001" if place in places else content)
            for place, (role, content) in enumerate(turns)
        ]
        pieces = _MARKER.split(render(template, marked, self.tokens, now, add_generation_prompt))
        own = pieces[::2]
        if [int(place) for place in pieces[1::2]] != places:
            raise UserError(
                f"{self.name} does not write the content of each message once and in order, so that control tokens in "
                "content could not be told from its own; name one of our templates with --config.data.template."
            )
        written = render(template, turns, self.tokens, now, add_generation_prompt)
        contents = _contents(written, own, [turns[place][1] for place in places])
        if contents is None:
            raise UserError(
                f"{self.name} changes what these messages say, by more than blanks at the ends; give other messages, or name "
                "one of our templates with --config.data.template."
            )
        return own, contents


ChatTemplate = Template | ForeignTemplate
"""What inference takes: one of ours, or a folder's own. Both have a name, the `source` in their folder, prompts and stop ids."""


def _contents(written: str, own: list[str], given: list[str]) -> list[str] | None:
    """The contents as they stand in what was written, between the template's own texts; None if they are not those given."""
    if not written.startswith(own[0]):
        return None
    at, contents = len(own[0]), []
    for content, after in zip(given, own[1:], strict=True):
        fitting = (text for text in (strip(content) for strip in _STRIPPED) if written.startswith(text + after, at))
        text = next(fitting, None)
        if text is None:
            return None
        contents.append(text)
        at += len(text) + len(after)
    return contents if at == len(written) else None
