"""Templates of other people for inference: the ids of transformers where content is harmless, and no forged tokens."""

import random

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_keras import builtin
from gemma_keras.config.errors import UserError
from gemma_keras.export.tokenizer_files import write_tokenizer_files
from gemma_keras.text.folder_templates import folder_template
from gemma_keras.text.foreign_template import ForeignTemplate
from gemma_keras.text.templates import TEMPLATES
from gemma_keras.text.tokenizer import Tokenizer
from tests.chat_templates import GOOGLE, OTHER

BUILTIN = Tokenizer(builtin.TOKENIZER)
TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>"}
CHAT = [
    {"role": "user", "content": "春天 hello"},
    {"role": "model", "content": "二。\n\n完了"},
    {"role": "user", "content": "  谢谢 you \n"},
]
SYSTEM = {"role": "system", "content": "请回答。"}


def foreign(text: str) -> ForeignTemplate:
    return ForeignTemplate(name="the chat template of DIR", source=text, tokens=TOKENS)


@pytest.fixture(scope="module")
def exported(tokenizer, tmp_path_factory):
    """What transformers makes of folders with the templates of others, and the folders."""
    made = {}
    for name, text in OTHER.items():
        folder = tmp_path_factory.mktemp("other")
        write_tokenizer_files(tokenizer, foreign(text), folder)
        assert not (folder / "chat_template_training.jinja").exists()  # nobody knows what carries loss
        made[name] = folder, transformers.AutoTokenizer.from_pretrained(folder)
    return made


def theirs(tokenizer, messages):
    renamed = [{**m, "role": "assistant" if m["role"] == "model" else m["role"]} for m in messages]
    ids = tokenizer.apply_chat_template(renamed, add_generation_prompt=True, return_dict=False)
    return ids if ids[0] == tokenizer.bos_token_id else [tokenizer.bos_token_id, *ids]


@pytest.mark.parametrize("name", OTHER)
def test_ids_are_those_of_transformers(name, exported, tokenizer):
    folder, other = exported[name]
    template = folder_template(folder)
    assert template.source == OTHER[name]
    lines = (builtin.TOKENIZER.parent / "corpus/zh_wiki/handwritten_01.txt").read_text(encoding="utf-8").split("\n")
    draw = random.Random(0)
    chats = [CHAT[:1], CHAT, *([{**m, "content": draw.choice(lines) or " "} for m in CHAT] for _ in range(50))]
    if name != "no place for a system":
        chats.append([SYSTEM, *CHAT])
    prompts = template.prompts(tokenizer, chats)
    assert prompts == [theirs(other, chat) for chat in chats]
    assert all(ids.count(tokenizer.bos_id) == 1 for ids in prompts)


@pytest.mark.parametrize("form", GOOGLE)
def test_googles_templates_read_this_way_too(form, tokenizer):
    template = foreign(GOOGLE[form])
    for chat in (CHAT, [SYSTEM, *CHAT]):
        assert template.prompts(tokenizer, [chat]) == TEMPLATES["gemma"].prompts(tokenizer, [chat])


def test_a_refused_system_message_opens_the_users(tokenizer):
    template = foreign(OTHER["no place for a system"])
    folded = [{"role": "user", "content": f"请回答。\n\n{CHAT[0]['content']}"}, *CHAT[1:]]
    assert template.prompts(tokenizer, [[SYSTEM, *CHAT]]) == template.prompts(tokenizer, [folded])


def test_bos_is_there_once(tokenizer):
    bare = "{% for m in messages %}<start_of_turn>{{ m.content }}{% endfor %}"
    expected = [tokenizer.bos_id, tokenizer.start_of_turn_id, *tokenizer.encode_content("<bos>")]
    for text in (bare, "{{ bos_token }}" + bare, "<bos>" + bare):
        assert foreign(text).prompts(tokenizer, [[{"role": "user", "content": "<bos>"}]]) == [expected]


PARTS = (*BUILTIN.control_pieces, "<", "eos>", "<unused", "1>", "\n", " ", "\ue0000\ue001", "\ue000", "你", "{{", "%}")
CONTENT = st.lists(st.sampled_from(PARTS) | st.text(st.characters(codec="utf-8"), max_size=3), max_size=8)


@settings(max_examples=100, deadline=None)
@given(contents=st.lists(CONTENT.map("".join), min_size=3, max_size=3), name=st.sampled_from([*OTHER, *GOOGLE]))
def test_no_content_forges_a_control_token(contents, name):
    template = foreign((OTHER | GOOGLE)[name])
    messages = [{**message, "content": content} for message, content in zip(CHAT, contents, strict=True)]
    controls = [
        [token for token in template.prompts(BUILTIN, [chat])[0] if token in BUILTIN.control_ids]
        for chat in (messages, CHAT)
    ]
    assert controls[0] == controls[1]
    written = BUILTIN.decode(template.prompts(BUILTIN, [messages])[0], skip_control=True)
    assert all(content.strip().replace("\u2581", " ") in written for content in contents)


def test_a_literal_that_template_and_content_spell_together_is_text(tokenizer):
    template = foreign("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    ((bos, *ids),) = template.prompts(tokenizer, [[{"role": "user", "content": "eos"}]])
    assert bos == tokenizer.bos_id and tokenizer.decode(ids) == "<eos>" and not tokenizer.control_ids.intersection(ids)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "once and in order"),
        ("{% for m in messages %}{{ m.content + m.content }}{% endfor %}", "once and in order"),
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "once and in order"),
        ("{{ messages[-1].content }}", "once and in order"),
        ("{% for m in messages %}{{ m.content[:2] }}{% endfor %}", "once and in order"),
        (
            "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}",
            "once and in order",
        ),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "changes what"),
        ("{% for m in messages %}{{ m.content | replace('\n', ' ') }}{% endfor %}", "changes what"),
        ("{% for m in messages %}{{ m.content.split('。')[-1] }}{% endfor %}", "changes what"),
        ("{% for m in messages %}{{ 'long' if m.content | length > 9 }}{{ m.content }}{% endfor %}", "changes what"),
        (
            "{{ raise_exception('ask me nothing') }}",
            "does not take messages of the roles user, model, user .*ask me nothing",
        ),
        ("{% for m in messages %}{{ m.content + 1 }}{% endfor %}", "does not take .*TypeError"),
        ("{% for m in messages %}", "is no Jinja that can be read .*line 1"),
        ("{% for m in messages %}" * 30 + "{% endfor %}" * 30, "is no Jinja that can be read .*nested too deeply"),
        ("{{" + "(" * 9000 + "1" + ")" * 9000 + "}}", "is no Jinja that can be read .*nested too deeply"),
    ],
)
def test_what_is_refused(text, message, tokenizer):
    with pytest.raises(UserError, match=message) as error:
        foreign(text).prompts(tokenizer, [CHAT])
    assert "the chat template of DIR" in str(error.value) and "--config.data.template" in str(error.value)
    assert "\n" not in str(error.value)


def test_messages_are_checked(tokenizer):
    template = foreign(OTHER["labels within a line"])
    with pytest.raises(UserError, match="role 'tool'"):
        template.prompts(tokenizer, [[{"role": "tool", "content": "x"}]])
    with pytest.raises(UserError, match="give a string"):
        template.prompts(tokenizer, [[{"role": "user", "content": None}]])


def test_what_ends_an_answer(tokenizer):
    usual = {tokenizer.end_of_turn_id, tokenizer.eos_id}
    ends = {name: set(foreign(text).stop_ids(tokenizer)) - usual for name, text in OTHER.items()}
    other = tokenizer.control_pieces["<unused1>"]
    assert ends.pop("blocks with other ends, without bos") == {other} and not any(ends.values())
    assert set(foreign("{{ raise_exception('x') }}").stop_ids(tokenizer)) == usual


def test_a_template_runs_in_a_sandbox(tokenizer):
    with pytest.raises(UserError, match="unsafe"):
        foreign("{{ ''.__class__.__mro__[1].__subclasses__() }}").check()
