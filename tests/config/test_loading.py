from pathlib import Path

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.config.loading import load_config
from tests.config.everything import Config, PipelineConfig

IMPORTS = "from tests.config.everything import *\n"


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_file_as_it_is_now_counts(tmp_path):
    for steps in (1, 2):
        path = write(tmp_path, f"{IMPORTS}def get_config(): return Config(train=TrainConfig(steps={steps}))")
        assert load_config(path, Config).train.steps == steps


def test_sections_that_the_file_shares_are_separated(tmp_path):
    path = write(tmp_path, f"{IMPORTS}ONE = Config()\ndef get_config(): return PipelineConfig(pretrain=ONE, sft=ONE)")
    config = load_config(path, PipelineConfig)
    config.pretrain.train.steps = 9
    assert config.sft.train.steps == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def get_config(:", "fails in line 1 with SyntaxError"),
        ("\nimport no_such_module", "fails in line 2 with ModuleNotFoundError"),
        ("x = 1", "has no function get_config()"),
        ("get_config = 3", "has no function get_config()"),
        ("def get_config():\n    raise ValueError('a\\nb')", "fails in line 2 with ValueError: a b"),
        (f"{IMPORTS}def get_config(): return TrainConfig(stepz=1)", "fails in line 2 with TypeError"),
        (f"{IMPORTS}def get_config():\n    c = Config()\n    c.trian = 1", "fails in line 4 with AttributeError"),
        (
            f"{IMPORTS}def get_config(): return PipelineConfig()",
            "a PipelineConfig, but this script reads a Config",
        ),
        ("def get_config(): pass", "gives a NoneType"),
        (f"{IMPORTS}def get_config(): return Config(train=TrainConfig(steps='9'))", "config.train.steps is '9'"),
        ("raise SystemExit(0)", "fails in line 1 with SystemExit"),
    ],
)
def test_broken_files_are_told_in_one_sentence(tmp_path, text, sentence):
    with pytest.raises(UserError) as error:
        load_config(write(tmp_path, text), Config)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "config.py"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="config.py fails with SyntaxError"):
        load_config(str(path), Config)


@pytest.mark.parametrize("name", ["missing.py", ""])
def test_a_missing_file_or_a_folder(tmp_path, name):
    with pytest.raises(UserError, match="is not a file: give one"):
        load_config(str(tmp_path / name), Config)
