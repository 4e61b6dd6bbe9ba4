import errno
from pathlib import Path

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.config.fields import leaves
from gemma_keras.config.flags import HelpRequested, parse, run
from gemma_keras.config.loading import load_config
from gemma_keras.config.schema import Config, PipelineConfig

SFT = """
from gemma_keras.config.schema import *

def get_config():
    corpora = (CorpusConfig(name="belle", share=0.25), CorpusConfig(name="alpaca_gpt4_zh", share=0.75))
    return Config(data=DataConfig(corpora=corpora), train=TrainConfig(steps=100), questions=("一", "二"))
"""
PIPELINE = "from gemma_keras.config.schema import *\ndef get_config(): return PipelineConfig()"


@pytest.fixture
def sft(tmp_path: Path) -> str:
    path = tmp_path / "sft.py"
    path.write_text(SFT, encoding="utf-8")
    return str(path)


@pytest.fixture
def pipeline(tmp_path: Path) -> str:
    path = tmp_path / "pipeline.py"
    path.write_text(PIPELINE, encoding="utf-8")
    return str(path)


def read(default_config: str, *arguments: str, kind=Config):
    return parse(["scripts/train.py", "--workdir=runs/x", *arguments], default_config, kind)[0]


def test_without_flags_the_file_counts(sft):
    config, workdir = parse(["train.py", "--workdir", "runs/x"], sft)
    assert config == load_config(sft, Config)
    assert workdir == Path("runs/x")
    assert not workdir.exists()


def test_flags_of_every_type(sft):
    config = read(
        sft,
        "--config.optim.learning_rate=3e-5",
        "--config.train.steps",
        "200",
        "--config.model.dtype=float32",
        "--config.adapter.peft_compatible",
        "--config.data.corpora.0.share=0.5",
        "--config.data.corpora.1.share=.5",
        "--config.optim.clip_norm=2",
        "--config.data.root=",
    )
    assert config.optim.learning_rate == 3e-5
    assert config.train.steps == 200
    assert config.model.dtype == "float32"
    assert config.adapter.peft_compatible is True
    assert [corpus.share for corpus in config.data.corpora] == [0.5, 0.5]
    assert config.optim.clip_norm == 2.0
    assert config.data.root == ""


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--config.adapter.peft_compatible=true"], True),
        (["--config.adapter.peft_compatible=false"], False),
        (["--config.adapter.peft_compatible", "--noconfig.adapter.peft_compatible"], False),
    ],
)
def test_booleans(sft, arguments, value):
    assert read(sft, *arguments).adapter.peft_compatible is value


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ([], ("一", "二")),
        (["--config.questions=三"], ("三",)),
        (["--config.questions=三, 四"], ("三", "四")),
        (["--config.questions=三", "--config.questions=四,五"], ("三", "四", "五")),
        (['--config.questions="Who, me?",三'], ("Who, me?", "三")),
        (["--config.questions="], ()),
    ],
)
def test_lists_are_given_with_commas_or_by_repetition(sft, arguments, value):
    assert read(sft, *arguments).questions == value


def test_the_later_flag_wins(sft, pipeline):
    assert read(sft, "--config.train.steps=1", "--config.train.steps=20").train.steps == 20
    assert read("missing.py", f"--config={pipeline}", f"--config={sft}").train.steps == 100
    assert parse(["x", "--workdir=a", "--workdir=b"], sft)[1] == Path("b")


def test_a_configuration_flag_may_stand_before_the_file(sft):
    assert read("missing.py", "--config.train.steps", "5000", "--config", sft).train.steps == 5000


def test_nested_configurations(pipeline):
    config = read(pipeline, "--config.pretrain.train.steps=7", "--config.data.root=x", kind=PipelineConfig)
    assert (config.pretrain.train.steps, config.sft.train.steps, config.data.root) == (7, 0, "x")


def test_parsing_twice_leaves_nothing_behind(sft):
    assert read(sft, "--config.train.steps=7").train.steps == 7
    assert read(sft).train.steps == 100


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config.optim.learing_rate=1"], "did you mean --config.optim.learning_rate?"),
        (["--config.learning_rate=1"], "did you mean --config.optim.learning_rate?"),
        (["--config.data.corpora.2.share=1"], "--config.data.corpora.1.share"),
        (["--confg=x.py"], "did you mean --config?"),
        (["--nothing_like_it"], "--nothing_like_it is no flag of this script or configuration: run with --help"),
        (["--config.train.steps=many"], "--config.train.steps=many: a whole number such as 100 is expected"),
        (["--config.train.steps=1e3"], "a whole number"),
        (["--config.train.steps="], "a whole number"),
        (["--config.train.steps"], "Missing value for flag --config.train.steps"),
        (["--config.optim.learning_rate=small"], "a number such as 0.5 or 3e-5 is expected"),
        (["--config.adapter.peft_compatible=perhaps"], "true or false is expected"),
        (["--config.adapter.method=adalora", "--config.adapter.target_r=100"], "config.adapter.target_r is 100"),
        (["--config.optim.learning_rate=nan"], "config.optim.learning_rate is nan"),
        (['--config.questions="open'], "Unable to parse"),
        (["stray"], "'stray' was given, but options have the form --name=value"),
        (["--", "--config.train.steps=1"], "'--config.train.steps=1' was given"),
        (["--config=missing.py"], "--config=missing.py is not a file"),
        (["--config"], "Missing value for flag --config"),
        (["--workdir="], "--workdir is missing"),
        (["--flagfile=missing"], "Unable to open flagfile"),
    ],
)
def test_mistakes(sft, arguments, sentence):
    with pytest.raises(UserError) as error:
        read(sft, *arguments)
    assert sentence in str(error.value)


def test_a_missing_workdir_and_one_that_is_a_file(sft):
    with pytest.raises(UserError, match="--workdir is missing: give the folder"):
        parse(["x"], sft)
    for path in (sft, f"{sft}/below"):
        with pytest.raises(UserError, match="is a file: give another folder"):
            parse(["x", f"--workdir={path}"], sft)


def test_help_lists_every_field_with_meaning_type_and_the_files_value(sft):
    with pytest.raises(HelpRequested) as request:
        parse(["scripts/train.py", "--help"], sft)
    text = str(request.value)
    for leaf in leaves(load_config(sft, Config)):
        assert f"  --config.{leaf.path} (" in text
        assert f"      {leaf.doc}\n" in f"{text}\n"
    assert "--config.train.steps (int, default: 100)" in text
    assert "usage: python -m scripts.train " in text


def test_bytes_that_are_no_text_are_told(sft):
    with pytest.raises(UserError, match=r"'--config.questions=\\udcff' is no valid UTF-8"):
        read(sft, "--config.questions=\udcff")
    assert read(sft, "--config.questions=春\U0001f33c").questions == ("春\U0001f33c",)


def test_a_full_disk_is_told_in_one_sentence(sft, monkeypatch, capsys):
    def full(config, workdir):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.argv", ["train.py", "--workdir=runs/x"])
    with pytest.raises(SystemExit) as caught:
        run(full, default_config=sft)
    assert caught.value.code == 1 and capsys.readouterr().err.startswith("error: a file could not be written")
