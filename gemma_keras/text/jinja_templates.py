"""Chat templates as Jinja: run as transformers runs them, and ours written for transformers and llama.cpp."""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gemma_keras.text.templates import GIVEN, Template

_MARKS = "{% generation %}", "{% endgeneration %}"


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`, which tells trainers what the model wrote: here only the text within."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


@functools.lru_cache(maxsize=16)
def compiled(text: str) -> jinja2.Template:
    """A chat template, ready for `render`; a folder's code runs in Jinja's sandbox.

    Raises:
        jinja2.TemplateError: it is no Jinja.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)  # Jinja's own escapes for HTML
    environment.globals["raise_exception"] = _raise
    try:
        return environment.from_string(text)
    except (SyntaxError, RecursionError) as error:  # of Python, into which Jinja translates
        raise jinja2.TemplateSyntaxError(f"it is nested too deeply: {error}", 1) from error


def render(
    template: jinja2.Template,
    turns: Sequence[tuple[str, str]],
    tokens: Mapping[str, str],
    now: datetime.datetime,
    add_generation_prompt: bool,
) -> str:
    """What a template writes of turns (role, content), the model's as "assistant", as other people's templates call it.

    Args:
        tokens: the special tokens that a template may name, such as `bos_token`.
        now: what its `strftime_now` tells.

    Raises:
        jinja2.TemplateError: the template refuses the turns, or fails on them.
    """
    messages = [{"role": "assistant" if role == "model" else role, "content": content} for role, content in turns]
    try:
        return template.render(
            **tokens, messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt,
            strftime_now=now.strftime,
        )  # fmt: skip
    except jinja2.TemplateError:
        raise
    except Exception as error:  # a template is a program: whatever it may raise, it did not write the conversation
        raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from error


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def write_jinja(template: Template, marked: bool = False) -> str:
    """One of our templates as Jinja, with bos in front and "assistant" for "model".

    It keeps to what llama.cpp's Jinja knows, too: there `replace` takes no count. `marked` puts `{% generation %}` around
    what carries loss, a model's content and closing; llama.cpp does not know that tag.
    """
    content = f"message['content'].strip({'' if template.stripped is None else repr(template.stripped)})"
    opening = "{{ bos_token }}"
    if "system" not in template.blocks:
        opening += _SYSTEM
        content = f"((system if loop.first else '') + {content}).strip()"
    branches = "el".join(
        f"if role == {role!r} %}}{_block(template, role, marked)}{{% " for role in template.blocks
    )  # fmt: skip
    return (
        f"{opening}{{% for message in messages %}}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        f"{{% set content = {content} %}}"
        f"{{% {branches}else %}}{{{{ raise_exception('no place for a message of role ' + role) }}}}{{% endif %}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{{{{ {template.blocks['model'].before!r} }}}}{{% endif %}}"
    )


_SYSTEM = (
    "{% set system = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'].strip() + '\\n\\n' %}{% set messages = messages[1:] %}{% endif %}"
)


def _block(template: Template, role: str, marked: bool) -> str:
    before, closing, after = template.blocks[role]
    if marked and role == "model":
        opening, ending = _MARKS
        return f"{{{{ {before!r} }}}}{opening}{{{{ content + {closing!r} }}}}{ending}{{{{ {after!r} }}}}"
    if template.given and role == "user":
        # The first place only.
        given = f"{{% set parts = content.split({GIVEN!r}) %}}"
        rest = f"({template.given!r} + (parts[1:] | join({GIVEN!r})) if parts | length > 1 else '')"
        return f"{given}{{{{ {before!r} + parts[0] + {rest} + {closing + after!r} }}}}"
    return f"{{{{ {before!r} + content + {closing + after!r} }}}}"
