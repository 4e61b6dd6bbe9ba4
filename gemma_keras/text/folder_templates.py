"""The chat template of a model's folder: where it is written, and which of ours it is, if any."""

import dataclasses
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2

from gemma_keras.config.errors import UserError
from gemma_keras.text.foreign_template import ChatTemplate, ForeignTemplate
from gemma_keras.text.jinja_templates import compiled, render
from gemma_keras.text.templates import GIVEN, TEMPLATES, Template

# What Gemma's tokenizers call their tokens where a folder does not say.
_TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
_BOS = "<bos>"


def folder_template(folder: str | Path) -> ChatTemplate | None:
    """The chat template of a Hugging Face folder, its text as `source`; None where it has none, as Keras presets.

    It is one of ours if it writes the same. Of how Google's refuse messages, and of blanks around a system message that
    opens the user's, nothing is asked.

    Raises:
        UserError: the folder's files are damaged.
    """
    folder = Path(folder)
    config = _read_object(folder / "tokenizer_config.json")
    tokens = {
        name: value if isinstance(value, str) else str(value.get("content", ""))  # transformers writes both
        for name, value in config.items()
        if name.endswith("_token") and value and isinstance(value, str | dict)
    }
    return template_of(folder, _source(folder, config), tokens)


def template_of(weights: str | Path, source: str, tokens: dict[str, str]) -> ChatTemplate | None:
    """As `folder_template`, of the text that was found with `weights` and of what their tokenizer calls its tokens."""
    if not source.strip():
        return None
    foreign = ForeignTemplate(name=f"the chat template of {weights}", source=source, tokens=_TOKENS | tokens)
    same = next((template for template in TEMPLATES.values() if _writes_the_same(foreign, template)), None)
    return dataclasses.replace(same, source=source) if same else foreign


def _source(folder: Path, config: dict[str, Any]) -> str:
    """The text of the template, looked for in the order of transformers."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_bytes().decode("utf-8")  # as it is, line ends too
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read ({error}); mend it or take it away.") from error
    stored = config.get("chat_template") or _read_object(folder / "chat_template.json").get("chat_template")
    if isinstance(stored, list):
        named = {item.get("name"): item.get("template") for item in stored if isinstance(item, dict)}
        stored = named.get("default", stored)
    if stored is not None and not isinstance(stored, str):
        raise UserError(
            f"the chat_template in {folder} is neither a text nor a list of named ones with a default; mend it or take it "
            "away."
        )
    return stored or ""


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); copy it anew.") from error
    return value if isinstance(value, dict) else {}


def _writes_the_same(theirs: ForeignTemplate, ours: Template) -> bool:
    now = datetime.datetime.now()
    try:
        template = compiled(theirs.source)
    except jinja2.TemplateError:
        return False
    for turns in _probes("system" in ours.blocks):
        messages = [{"role": role, "content": content} for role, content in turns]
        for ending in (False, True):
            try:
                written = render(template, turns, theirs.tokens, now, ending)
            except jinja2.TemplateError:
                # Where ours writes the system's text into the user's turn, theirs may have no place for it.
                if turns[0][0] == "system" and "system" not in ours.blocks:
                    continue
                return False
            if written != _BOS + ours.render(messages, ending):
                return False
    return True


_CONTENTS = (
    "x",
    " \n\r\t\u3000y  z\n\n z\u3000\t\r\n ",
    f"a{GIVEN}b{GIVEN}c",
    "<think>a</think>b {{ c }} <b>&amp;\"'\\<eos>",
    "\n \n",
)
"""What templates may take off, replace, cut at or escape."""


def _probes(own_block: bool) -> Iterator[list[tuple[str, str]]]:
    """Conversations in which templates differ.

    Args:
        own_block: whether a system message has a block of its own.
    """
    for shift in range(len(_CONTENTS)):
        contents = _CONTENTS[shift:] + _CONTENTS[:shift]
        chat = list(zip(("user", "model") * 2, contents))
        yield from (chat[:length] for length in (1, 3, 4))
        if own_block or chat[0][1].strip():
            yield [("system", contents[-1] if own_block else "s"), *chat[:1]]
            yield [("system", "s"), *chat]
