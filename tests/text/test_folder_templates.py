"""Where a folder's chat template lies, and which of ours it is: by what it writes."""

import json

import pytest
import transformers

from gemma_keras.config.errors import UserError
from gemma_keras.export.tokenizer_files import write_tokenizer_files
from gemma_keras.text.folder_templates import folder_template
from gemma_keras.text.foreign_template import ForeignTemplate
from gemma_keras.text.jinja_templates import write_jinja
from gemma_keras.text.templates import TEMPLATES
from tests.chat_templates import GOOGLE, OTHER

OURS = {name: write_jinja(template) for name, template in TEMPLATES.items()}


def put(folder, text, place="chat_template.jinja"):
    if place.endswith(".jinja"):
        (folder / place).write_bytes(text.encode())
    else:
        stored = [{"name": "rag", "template": "x"}, {"name": "default", "template": text}] if "list" in place else text
        (folder / place.split()[-1]).write_text(
            json.dumps({"bos_token": {"content": "<bos>"}, "chat_template": stored})
        )
    return folder_template(folder)


@pytest.mark.parametrize(
    "place", ["chat_template.jinja", "tokenizer_config.json", "list in tokenizer_config.json", "chat_template.json"]
)
@pytest.mark.parametrize("name", TEMPLATES)
def test_places(name, place, tmp_path):
    found = put(tmp_path, OURS[name], place)
    assert (found.name, found.source) == (name, OURS[name])
    assert found.blocks == TEMPLATES[name].blocks


def test_the_order_of_places_is_that_of_transformers(tokenizer, tmp_path):
    write_tokenizer_files(tokenizer, TEMPLATES["passage"], tmp_path)
    put(tmp_path, OURS["gemma"], "chat_template.json")
    assert folder_template(tmp_path).name == "passage"
    (tmp_path / "chat_template.jinja").unlink()
    assert folder_template(tmp_path).name == "passage"  # of tokenizer_config.json
    assert put(tmp_path, OURS["instruction"]).name == "instruction"
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).chat_template == OURS["instruction"]


@pytest.mark.parametrize("form", GOOGLE)
def test_googles_forms_are_ours(form, tmp_path):
    found = put(tmp_path, GOOGLE[form])
    assert (found.name, found.source) == ("gemma", GOOGLE[form])
    # The writing does not matter: line ends, comments, names.
    other = "{# Gemma #}" + GOOGLE[form].replace("message.", "m.").replace("message[", "m[").replace(
        "for message", "for m"
    )
    found = put(tmp_path, other.replace("\n", "\r\n"))
    assert found.name == "gemma" and "\r\n" in found.source


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("change", ["closing", "blanks", "bos", "system", "prompt", "later turns", "date", "thoughts"])
def test_a_template_that_writes_anything_else_is_not_ours(name, change, tmp_path):
    text = OURS[name]
    end = repr(TEMPLATES[name].blocks["model"].closing + TEMPLATES[name].blocks["model"].after)
    changed = {
        "closing": text.replace(end, repr("<end_of_turn>\n\n")),
        "blanks": text.replace(".strip(", ".lstrip("),
        "bos": text.replace("{{ bos_token }}", ""),
        "system": "{{ bos_token }}{% if messages[0].role == 'system' %}{{ '!' }}{% endif %}"
        + text.removeprefix("{{ bos_token }}"),
        "prompt": text.replace("add_generation_prompt", "false"),
        "later turns": text.replace("{% endfor %}", "{{ '\\n' if loop.index == 4 }}{% endfor %}"),
        "date": text.replace("{{ bos_token }}", "{{ bos_token + strftime_now('%Y') }}"),
        "thoughts": text.replace(
            "{% set role",
            "{% set message = dict(message, content=message.content.split('</think>')[-1]) %}{% set role",
            1,
        ),
    }[change]
    assert changed != text
    found = put(tmp_path, changed)
    assert isinstance(found, ForeignTemplate) and found.source == changed and str(tmp_path) in found.name


@pytest.mark.parametrize("name", OTHER)
def test_templates_of_others(name, tmp_path):
    assert isinstance(put(tmp_path, OTHER[name]), ForeignTemplate)


def test_a_folder_without_a_template(tmp_path):
    assert folder_template(tmp_path) is None and folder_template(tmp_path / "missing") is None
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": null}')
    assert folder_template(tmp_path) is None
    assert put(tmp_path, " \n") is None


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", b"{", "is damaged"),
        (
            "tokenizer_config.json",
            b'{"chat_template": [{"name": "rag", "template": "x"}]}',
            "named ones with a default",
        ),
        ("tokenizer_config.json", b'{"chat_template": 3}', "neither a text nor a list"),
        ("chat_template.jinja", b"\xff\xfe", "cannot be read"),
        ("chat_template.json", b"\xff", "is damaged"),
    ],
)
def test_damaged_files(file, content, message, tmp_path):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        folder_template(tmp_path)
