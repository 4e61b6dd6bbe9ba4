"""What is shown of a value gives it again, whatever the texts are."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_keras.config.fields import ESCAPED_TEXTS, NAMES, PATHS, STRINGS, TEXTS, Leaf, leaves
from gemma_keras.config.values import kind_of, read, shown
from tests.config.everything import Config

text = st.text(st.one_of(st.sampled_from("\\ntr\n\t\r,\"' a$`!~"), st.characters(codec="utf-8")), min_size=1)
name = text.map(lambda value: " ".join(value.split())).filter(bool)


class Section:
    def __init__(self, value: tuple[str, ...]):
        self.value = value


@pytest.mark.parametrize("holds", [TEXTS, ESCAPED_TEXTS])
@given(values=st.lists(text, min_size=1))
def test_texts(holds, values):
    leaf = Leaf("x", Section(tuple(values)), "value", STRINGS, "", holds)
    words = [word.removeprefix("--config.x=") for word in shlex.split(shown(leaf))]
    assert [entry for word in words for entry in read(leaf, word)] == values


@pytest.mark.parametrize("holds", [NAMES, PATHS])
@given(values=st.lists(name))
def test_names(holds, values):
    leaf = Leaf("x", Section(tuple(values)), "value", STRINGS, "", holds)
    (word,) = shlex.split(shown(leaf))
    assert read(leaf, word) == values


def test_every_default_of_one_value():
    for leaf in leaves(Config()):
        if leaf.kind != STRINGS:
            (word,) = shlex.split(shown(leaf))
            assert read(leaf, word) == leaf.value, leaf.path


def test_kinds():
    found = {leaf.path: kind_of(leaf) for leaf in leaves(Config())}
    assert found["questions"] == "list of texts, the flag repeated"
    assert found["sampling.stop"] == "list of texts with escapes, the flag repeated"
    assert (found["solver.pipeline"], found["data.earlier"]) == ("list of names a,b", "list of paths a,b")
    assert (found["model.weights"], found["model.dtype"], found["train.steps"]) == ("path", "str", "int")
