"""Prompts of the solvers: what they ask for, with `{placeholders}`, in Chinese or English or from a file.

The package's own are `zh.toml` and `en.toml`. A file of the same form, in TOML or JSON, holds prompts by their names in
`Prompts`; those that it leaves out stay as they are. A prompt is a text (one message of the user) or a list of messages:

    judge = "问题：{question} ..."

    [[plan]]
    role = "system"
    content = "..."

Each must have the placeholders of the package's own, and no others. Any other brace stands for itself. What the
answers must look like (a numbered list, four lines of a verdict, "答案：" or "Answer:" before a result) is read by
`solvers.replies` and cannot be changed here.
"""

import dataclasses
import functools
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic

from gemma_keras.config.errors import UserError, require
from gemma_keras.config.serialization import from_dict
from gemma_keras.text.templates import Message, checked

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


def _checked(messages: list[Message]) -> list[Message]:
    for message in messages:
        checked(message)
    require(messages[-1]["role"] == "user", "the last message has to be the user's")
    return messages


Prompt = Annotated[
    list[Message],
    pydantic.BeforeValidator(lambda value: [{"role": "user", "content": value}] if isinstance(value, str) else value),
    pydantic.Field(min_length=1),
    pydantic.AfterValidator(_checked),
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """One prompt for each kind of call; those in the second group are pieces that stand inside others.

    Attributes:
        answer: the question itself.
        plan: for 3 to 5 sub-questions as a numbered list.
        plan_strictly: the same, after an answer in which none could be found.
        plan_json: the same, as an object with the list `sub_questions`.
        first_step: the first sub-question.
        next_step: another one, with the answers to all before it.
        summary: the answer that follows from those to the sub-questions.
        judge: a verdict on an answer.
        rewrite: an answer that follows a verdict.
        complexity: a score from 0 to 1.
        letter: the option that an answer chooses.
        statement: question and answer as one sentence.
        masked: the number that stands at X, given the conclusion.
        verdict: whether a conclusion is right, for a question without numbers.
        step: a sub-question and its answer, as `{steps}` of other prompts lists them.
        step_in_context: a sub-question, as verdicts and rewrites see it.
        options: a question with options.
        final_line: a question whose answers will be compared.
    """

    answer: Prompt
    plan: Prompt
    plan_strictly: Prompt
    plan_json: Prompt
    first_step: Prompt
    next_step: Prompt
    summary: Prompt
    judge: Prompt
    rewrite: Prompt
    complexity: Prompt
    letter: Prompt
    statement: Prompt
    masked: Prompt
    verdict: Prompt

    step: str
    step_in_context: str
    options: str
    final_line: str

    def messages(self, name: str, **values: str) -> list[Message]:
        """The messages of a prompt with its placeholders filled in."""
        prompt: list[Message] = getattr(self, name)
        return [{"role": message["role"], "content": _fill(message["content"], values)} for message in prompt]

    def text(self, name: str, **values: str) -> str:
        """A piece with its placeholders filled in."""
        return _fill(getattr(self, name), values).strip()

    def to_json(self) -> str:
        """All prompts in the form of a file."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=2)


@functools.cache
def load_builtin_prompts(language: str) -> Prompts:
    """The package's own prompts in Chinese ("zh") or English ("en")."""
    path = Path(__file__).with_name(f"{language}.toml")
    return from_dict(tomllib.loads(path.read_text(encoding="utf-8")), Prompts, path.name)


def load_prompts(language: str, path: str = "") -> Prompts:
    """The package's own prompts, with those of a file in their place.

    Raises:
        UserError: the file is missing or malformed, or a prompt lacks a placeholder or has one that it must not.
    """
    prompts = load_builtin_prompts(language)
    return replace_prompts(prompts, _read_file(Path(path)), path) if path else prompts


def replace_prompts(prompts: Prompts, values: Mapping[str, Any], origin: str) -> Prompts:
    """The prompts, with those of a file's contents in their place.

    Raises:
        UserError: as `load_prompts`.
    """
    for name in values:
        require(
            name in PLACEHOLDERS, f"the prompt {name!r} of {origin} has no use; give one of {', '.join(PLACEHOLDERS)}."
        )
    prompts = from_dict(dataclasses.asdict(prompts) | dict(values), Prompts, origin)
    for name in values:
        _check_placeholders(getattr(prompts, name), PLACEHOLDERS[name], f"the prompt {name!r} of {origin}")
    return prompts


def _fill(text: str, values: Mapping[str, str]) -> str:
    """All placeholders at once, so that a question which spells one is left alone."""
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text)


def _read_file(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise UserError(
            f"solver.prompts={path} cannot be read ({error.strerror}); give a TOML or JSON file."
        ) from error
    except (ValueError, RecursionError) as error:
        kind = "TOML" if path.suffix == ".toml" else "JSON"
        raise UserError(f"solver.prompts={path} is no {kind} ({error}); correct it.") from error
    if not isinstance(values, dict):
        raise UserError(f"solver.prompts={path} holds a {type(values).__name__}; give prompts by name.")
    return values


def _find_placeholders(prompt: str | list[Message]) -> frozenset[str]:
    texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    return frozenset(name for text in texts for name in _PLACEHOLDER.findall(text))


def _check_placeholders(prompt: str | list[Message], expected: frozenset[str], where: str) -> None:
    found = _find_placeholders(prompt)
    for wrong, verb in ((expected - found, "lacks"), (found - expected, "must not have")):
        if wrong:
            names = ", ".join(f"{{{name}}}" for name in sorted(wrong))
            needed = ", ".join(f"{{{name}}}" for name in sorted(expected))
            raise UserError(f"{where} {verb} {names}; it takes just {needed}.")


PLACEHOLDERS = {
    field.name: _find_placeholders(getattr(load_builtin_prompts("zh"), field.name))
    for field in dataclasses.fields(Prompts)
}
