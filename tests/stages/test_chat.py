"""What the stage answers and refuses, question by question and line by line."""

import io
import sys

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import ModelConfig, SamplingConfig
from gemma_keras.config.stages import ChatConfig
from gemma_keras.stages import chat
from gemma_keras.stages.running.assets import load_chat_model

LONG = "很长" * 3000


@pytest.fixture(scope="module")
def loaded(base, tmp_path_factory):
    """A model, compiled once for all tests."""
    return load_chat_model(
        ChatConfig(model=ModelConfig(weights=str(base), dtype="float32")), tmp_path_factory.mktemp("load")
    )


@pytest.fixture
def config(base, loaded, monkeypatch) -> ChatConfig:
    monkeypatch.setattr(chat, "load_chat_model", lambda config, workdir: loaded)
    sampling = SamplingConfig(max_new_tokens=8, seed=3)
    return ChatConfig(model=ModelConfig(weights=str(base), dtype="float32"), sampling=sampling)


def asked(config: ChatConfig, *questions: str) -> ChatConfig:
    return ChatConfig(model=config.model, sampling=config.sampling, questions=questions)


def piped(monkeypatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))


def test_a_question_that_is_too_long_is_refused_by_itself(config, tmp_path, capsys):
    chat.run(asked(config, "你好", "再见", "好吗？"), tmp_path / "a")
    answered = capsys.readouterr().out.split("\n\n")
    with pytest.raises(UserError) as error:
        chat.run(asked(config, "你好", LONG, "好吗？"), tmp_path / "b")
    shown = capsys.readouterr().out.split("\n\n")
    assert (shown[0], shown[2]) == (answered[0], answered[2]) and shown[0].startswith("> 你好\n")
    assert shown[1].startswith(f"> {LONG}\n[prompt 1 has ") and "exceeds the model's" in shown[1]
    assert str(error.value).startswith(f"1 of 3 questions not answered: '{LONG[:60]}...': prompt 1 has ")


def test_settings_that_no_question_can_be_asked_with(config, tmp_path, capsys):
    config.sampling.num_beams, config.sampling.stop = 2, ("。",)
    with pytest.raises(UserError) as error:
        chat.run(asked(config, *"一二三四"), tmp_path / "a")
    assert str(error.value).startswith(
        "4 of 4 questions not answered: '一': beam search does not work with stop strings"
    )
    assert str(error.value).endswith("; and 1 more.") and capsys.readouterr().out.count("[beam search") == 4


def test_lines_of_a_pipe_are_refused_one_by_one(config, tmp_path, monkeypatch, capsys):
    piped(monkeypatch, "你好\n\n再见\n")
    chat.run(config, tmp_path / "a")
    answered = capsys.readouterr().out
    piped(monkeypatch, f"你好\n{LONG}\n再见")
    with pytest.raises(UserError, match=f"1 of 3 lines not answered: '{LONG[:60]}...': prompt 0 has "):
        chat.run(config, tmp_path / "b")
    shown = capsys.readouterr().out
    before, refused, after = shown.partition(f"> {LONG}\n[prompt 0 has ")
    assert refused and answered.startswith(before) and before.startswith("> 你好\n")
    assert before + after.partition("]\n")[2] == answered  # the line before it is still known to the one after it
