"""A configuration for each stage: what it reads is a flag, counts in a file and is written down; nothing else."""

import re
from pathlib import Path

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.config.fields import leaves, validate
from gemma_keras.config.flags import parse
from gemma_keras.config.loading import load_config, taken
from gemma_keras.config.sections import CorpusConfig, DataConfig, TrainConfig
from gemma_keras.config.serialization import to_dict
from gemma_keras.config.stages import (
    STAGES,
    ChatConfig,
    DescribeDataConfig,
    EvaluateConfig,
    LetterPairsConfig,
    PrepareConfig,
    PretrainConfig,
    SftConfig,
    SolveConfig,
)
from tests.house import MODULES, ROOT

STAGE_FILE = (
    "from gemma_keras.config.sections import *\nfrom gemma_keras.config.stages import *\ndef get_config(): return {}"
)


def write(folder: Path, text: str) -> str:
    path = folder / "config.py"
    path.write_text(STAGE_FILE.format(text), encoding="utf-8")
    return str(path)


def paths(kind) -> set[str]:
    return {leaf.path for leaf in leaves(kind())}


@pytest.mark.parametrize("kind", STAGES.values())
def test_defaults_are_valid(kind):
    validate(kind())


def test_a_stage_has_the_fields_that_it_reads():
    assert paths(ChatConfig) & paths(SftConfig) == {
        "tokenizer.path", "model.weights", "model.dtype", "data.template", "parallel.data", "parallel.model"
    }  # fmt: skip
    assert {path for path in paths(SolveConfig) if path.startswith("sampling.")} == {
        f"sampling.{name}" for name in ("max_new_tokens", "temperature", "top_p", "repetition_penalty", "seed")
    }
    assert not any("train." in path for path in paths(LetterPairsConfig))
    assert paths(PretrainConfig) == {path for path in paths(SftConfig) if "adapter" not in path} | {"adapter.method"}


def test_every_field_is_read_somewhere():
    """As far as names tell: each is an attribute that some module outside of `config` asks for."""
    modules = [name for name in MODULES if name.startswith("gemma_keras/") and "/config/" not in name]
    asked = set(re.findall(r"\.(\w+)\b", "\n".join((ROOT / name).read_text(encoding="utf-8") for name in modules)))
    assert [leaf.path for kind in STAGES.values() for leaf in leaves(kind()) if leaf.name not in asked] == []


def test_entries_of_a_list_are_read_in_part():
    config = DescribeDataConfig(data=DataConfig(corpora=(CorpusConfig(name="belle"),)))
    found = [leaf.path for leaf in leaves(config)]
    assert found == ["data.root", *(f"data.corpora.0.{name}" for name in ("name", "path", "hub", "kinds"))]
    assert to_dict(config) == {"data": {"root": "", "corpora": [{"name": "belle", "path": "", "hub": "", "kinds": []}]}}


def test_a_file_of_another_stage_gives_what_is_read(tmp_path):
    path = write(tmp_path, "SftConfig(data=DataConfig(rows=7, loss_on='all'), train=TrainConfig(steps=9))")
    assert load_config(path, PrepareConfig) == PrepareConfig(data=DataConfig(rows=7))
    assert load_config(path, EvaluateConfig).data.rows == 7
    assert load_config(path, ChatConfig) == ChatConfig()
    assert taken(SftConfig(train=TrainConfig(steps=9)), PretrainConfig) == PretrainConfig(train=TrainConfig(steps=9))


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [
        ("ChatConfig(data=DataConfig(rows=7))", ChatConfig, "sets config.data.rows, which a ChatConfig does not read"),
        ("SolveConfig(sampling=SamplingConfig(top_k=5))", SolveConfig, "sets config.sampling.top_k"),
        (
            "DescribeDataConfig(data=DataConfig(corpora=(CorpusConfig(name='belle', share=1.0),)))",
            DescribeDataConfig,
            "sets config.data.corpora.0.share",
        ),
        ("LetterPairsConfig(train=TrainConfig())", LetterPairsConfig, "unexpected keyword argument 'train'"),
        ("PipelineConfig()", SftConfig, "gives a PipelineConfig, but this script reads a SftConfig"),
    ],
)
def test_what_a_stage_does_not_read_is_told(tmp_path, text, kind, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        load_config(write(tmp_path, text), kind)


def test_a_file_of_the_former_shape_is_told(tmp_path):
    path = tmp_path / "config.py"
    path.write_text("from gemma_keras.config.schema import Config\ndef get_config(): return Config()", encoding="utf-8")
    with pytest.raises(
        UserError, match="fails in line 1 .*each stage has a configuration of its own, such as SftConfig"
    ):
        load_config(str(path), SftConfig)


@pytest.mark.parametrize(
    ("kind", "flag", "sentence"),
    [
        (LetterPairsConfig, "train.batch_rows=4", "it is --config.inference.max_rows now"),
        (SolveConfig, "sampling.top_k=4", "scripts.make_letter_pairs, scripts.chat read it, this one does not"),
        (ChatConfig, "solver.name=normal", "scripts.solve reads it, this one does not"),
        (ChatConfig, "sampling.topk=4", "did you mean --config.sampling.top_k?"),
    ],
)
def test_a_flag_of_another_stage_is_told(tmp_path, kind, flag, sentence):
    path = write(tmp_path, f"{kind.__name__}()")
    with pytest.raises(UserError, match=re.escape(f"--config.{flag.partition('=')[0]} is no flag of this script")) as e:
        parse(["x", "--workdir=x", f"--config.{flag}"], path, kind)
    assert str(e.value).endswith(sentence)
