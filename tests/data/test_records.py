import pytest

from gemma_keras.data.records import BadRow, ChatRecord, TextRecord, validate


def turns(*roles, content="x"):
    return [{"role": role, "content": content} for role in roles]


@pytest.mark.parametrize("roles", [("user", "model"), ("system", "user", "model"), ("user", "model") * 3])
def test_sound_conversations(roles):
    validate(ChatRecord(messages=turns(*roles), type="dialogue"))


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no messages"),
        (turns("user"), "turns are user"),
        (turns("system"), "turns are system"),
        (turns("model", "user"), "turns are"),
        (turns("user", "user", "model"), "turns are"),
        (turns("user", "system", "model"), "turns are"),
        (turns("user", "assistant"), "roles"),
        (turns("user", "model", content="\ud83d"), "surrogate"),
    ],
)
def test_broken_conversations(messages, reason):
    with pytest.raises(BadRow, match=reason):
        validate(ChatRecord(messages=messages, type="dialogue"))


def test_text():
    validate(TextRecord(text="文章"))
    with pytest.raises(BadRow, match="surrogate"):
        validate(TextRecord(text="\ud83d"))
