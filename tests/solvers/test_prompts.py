"""Prompts: what the package's own say, and files that take their place."""

import configparser
import dataclasses
import json
import re
from pathlib import Path

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.solvers.prompts import (
    PLACEHOLDERS,
    Prompts,
    load_builtin_prompts,
    load_prompts,
    replace_prompts,
)
from gemma_keras.solvers.replies import plans
from gemma_keras.solvers.replies.judgements import read_verdict
from gemma_keras.solvers.replies.letters import find_option
from gemma_keras.text.templates import TEMPLATES


@pytest.mark.parametrize("language", ["zh", "en"])
def test_own_prompts_are_complete(language):
    prompts = load_builtin_prompts(language)
    values = json.loads(prompts.to_json())
    assert values.keys() == PLACEHOLDERS.keys() == {field.name for field in dataclasses.fields(Prompts)}
    assert replace_prompts(load_builtin_prompts("zh"), values, "own") == prompts


def test_an_installed_package_holds_them():
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg", encoding="utf-8")
    assert setup["options.package_data"]["gemma_keras.solvers.prompts"] == "*.toml"


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_every_template_takes_them(language, template):
    prompts = load_builtin_prompts(language)
    for name in PLACEHOLDERS.keys() - {field.name for field in dataclasses.fields(Prompts) if field.type is str}:
        assert "几点？" in template.render(prompts.messages(name, question="几点？"), add_generation_prompt=True)


@pytest.mark.parametrize("language", ["zh", "en"])
def test_the_examples_are_what_the_parsers_read(language):
    prompts = load_builtin_prompts(language)
    by_name = {name: prompts.messages(name, question="q") for name in ("plan", "plan_json")}
    for messages in by_name.values():
        assert [message["role"] for message in messages] == ["system", "user", "model", "user", "model", "user"]
    for listed, as_object in zip(by_name["plan"][2::2], by_name["plan_json"][2::2]):
        plan = plans.read_sub_questions(listed["content"])
        assert plan == plans.read_sub_questions(as_object["content"]) and 3 <= len(plan) <= 5
    (strictly,) = prompts.messages("plan_strictly", question="q")
    assert len(plans.read_sub_questions(strictly["content"])) == 3
    verdict = read_verdict(prompts.messages("judge", question="q", answer="a")[0]["content"])
    assert verdict.accuracy and verdict.completeness and verdict.logic and verdict.suggestions
    options = prompts.text("options", question="q", options="A. x")
    mark = re.search('[“"](答案：|Answer:)[”"]', options)
    assert mark and find_option(f"{mark[1]} B", "AB") == "B"


def test_what_a_question_spells_is_left_alone():
    prompts = load_builtin_prompts("zh")
    (message,) = prompts.messages("judge", question="{answer} {x} {", answer="{question}")
    assert "问题：{answer} {x} {\n\n回答：{question}" in message["content"]
    assert prompts.messages("answer", question="q") == [{"role": "user", "content": "q"}]


def test_a_file_takes_the_place_of_some(tmp_path):
    toml = tmp_path / "prompts.toml"
    toml.write_text('answer = "请答：{question}"\nstep = "{number} {sub_question} {answer}"\n\n'
                    '[[summary]]\nrole = "system"\ncontent = "汇总 {x y}"\n'
                    '[[summary]]\nrole = "user"\ncontent = "{question} {steps}"\n', encoding="utf-8")  # fmt: skip
    prompts, own = load_prompts("zh", str(toml)), load_builtin_prompts("zh")
    assert prompts.messages("answer", question="q") == [{"role": "user", "content": "请答：q"}]
    assert prompts.messages("summary", question="q", steps="s") == [
        {"role": "system", "content": "汇总 {x y}"},
        {"role": "user", "content": "q s"},
    ]
    assert prompts.step == "{number} {sub_question} {answer}" and prompts.judge == own.judge

    path = tmp_path / "prompts.json"
    path.write_text(prompts.to_json(), encoding="utf-8-sig")
    assert load_prompts("en", str(path)) == prompts
    assert load_prompts("en") == load_builtin_prompts("en") != own


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"anwser": "{question}"}, "the prompt 'anwser' of p.json has no use; give one of answer, plan"),
        ({"judge": "{question}"}, "lacks {answer}; it takes just {answer}, {question}"),
        ({"answer": "{question} {reply}"}, "must not have {reply}; it takes just {question}"),
        ({"answer": 3}, "p.json.answer is 3: Input should be a valid array"),
        ({"answer": []}, "p.json.answer is []: Value should have at least 1 item"),
        ({"answer": [{"role": "user"}]}, "the content of a user message is NoneType; give a string"),
        (
            {"answer": [{"role": "assistant", "content": "{question}"}]},
            "a message has the role 'assistant'; use one of",
        ),
        ({"answer": [{"role": "user", "content": 1}]}, "p.json.answer.0.content is 1: Input should be a valid string"),
        ({"answer": [{"role": "model", "content": "{question}"}]}, "the last message has to be the user's"),
        ({"step": [{"role": "user", "content": ""}]}, "content': ''}]: Input should be a valid string"),
    ],
)
def test_mistakes_in_prompts(values, sentence):
    with pytest.raises(UserError) as error:
        replace_prompts(load_builtin_prompts("zh"), values, "p.json")
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("p.json", "{", "p.json is no JSON"),
        ("p.toml", "a =", "p.toml is no TOML"),
        ("p.json", "[]", "holds a list; give prompts by name"),
        ("p.json", None, "cannot be read (No such file or directory)"),
        ("p.json", b"\xff", "is no JSON"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, text, sentence):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        load_prompts("zh", str(path))
    assert sentence in str(error.value) and str(path) in str(error.value)
