import errno
import re
import shlex
from pathlib import Path

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.config.fields import leaves
from gemma_keras.config.flags import HelpRequested, parse, run
from gemma_keras.config.loading import load_config
from tests.config.everything import Config, PipelineConfig

SFT = """
from tests.config.everything import *

def get_config():
    corpora = (CorpusConfig(name="belle", share=0.25), CorpusConfig(name="alpaca_gpt4_zh", share=0.75))
    return Config(data=DataConfig(corpora=corpora), train=TrainConfig(steps=100), questions=("一", "二"))
"""
PIPELINE = "from tests.config.everything import *\ndef get_config(): return PipelineConfig()"


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
    config, workdir = parse(["train.py", "--workdir", "runs/x"], sft, Config)
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
        (["--config.questions=小明有12个苹果,吃了3个,现在有几个？"], ("小明有12个苹果,吃了3个,现在有几个？",)),
        (["--config.questions=三", "--config.questions=四,五"], ("三", "四,五")),
        (['--config.questions="Who, me?" he said'], ('"Who, me?" he said',)),
        (
            [r"--config.questions=求 $\frac{1}{2}\times\nabla f$，\n 是什么？"],
            (r"求 $\frac{1}{2}\times\nabla f$，\n 是什么？",),
        ),
        (["--config.questions", "两行\n的问题 "], ("两行\n的问题 ",)),
        (["--config.questions="], ()),
    ],
)
def test_questions_are_texts_as_they_are(sft, arguments, value):
    assert read(sft, *arguments).questions == value


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["\n"], ("\n",)),
        ([r"\n"], ("\n",)),
        (["\n用户："], ("\n用户：",)),
        ([r"\n用户："], ("\n用户：",)),
        ([","], (",",)),
        ([" ", '"', "a, b"], (" ", '"', "a, b")),
        ([r"\t\r\\n", r"\end{document}", r"C:\\temp"], ("\t\r\\n", r"\end{document}", r"C:\temp")),
        ([""], ()),
    ],
)
def test_stop_strings_keep_their_ends_and_may_spell_line_ends(sft, arguments, value):
    assert read(sft, *(f"--config.sampling.stop={text}" for text in arguments)).sampling.stop == value


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--config.adapter.targets=query, key"], ("query", "key")),
        (["--config.adapter.targets=query", "--config.adapter.targets=key,value"], ("query", "key", "value")),
        (['--config.adapter.targets= "query", "key"'], ("query", "key")),
    ],
)
def test_names_are_given_with_commas_or_by_repetition(sft, arguments, value):
    assert read(sft, *arguments).adapter.targets == value
    paths = ["--config.data.earlier=a,~/b", '--config.data.earlier="c,d"']
    assert read(sft, *paths).data.earlier == ("a", str(Path.home() / "b"), "c,d")


def test_the_later_flag_wins(sft, pipeline):
    assert read(sft, "--config.train.steps=1", "--config.train.steps=20").train.steps == 20
    assert read("missing.py", f"--config={pipeline}", f"--config={sft}").train.steps == 100
    assert parse(["x", "--workdir=a", "--workdir=b"], sft, Config)[1] == Path("b")


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
        (['--config.adapter.targets="open'], "names with commas between them are expected"),
        (["--config.data.cleaning.contamination=ceval,,cmmlu"], "and one of these is empty"),
        (["--config.data.earlier=a\nb"], "names with commas between them are expected"),
        (
            ["--config.questions=", "--config.questions=a"],
            "config.questions.0 is '': String should have at least 1 character",
        ),
        (["--config.questions=\n "], r"config.questions.0 is '\n ': String should have"),
        (["--config.sampling.stop=a", "--config.sampling.stop="], "config.sampling.stop.1 is '': String should have"),
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
        parse(["x"], sft, Config)
    for path in (sft, f"{sft}/below"):
        with pytest.raises(UserError, match="is a file: give another folder"):
            parse(["x", f"--workdir={path}"], sft, Config)


def test_help_lists_every_field_with_meaning_type_and_the_files_value(sft):
    with pytest.raises(HelpRequested) as request:
        parse(["scripts/train.py", "--help"], sft, Config)
    text = str(request.value)
    for leaf in leaves(load_config(sft, Config)):
        assert f"  --config.{leaf.path} (" in text
        assert f"      {leaf.doc}\n" in f"{text}\n"
    assert "--config.train.steps (int, default: 100)" in text
    assert "--config.questions (list of texts, the flag repeated, default: --config.questions='一' " in text
    assert "--config.adapter.targets (list of names a,b, default: query,key,value,attention_output)" in text
    assert "--config.data.earlier (list of paths a,b, default: '')" in text
    assert "--config.solver.input (path, default: '')" in text
    assert "usage: python -m scripts.train " in text


ODD = r"""
from tests.config.everything import *

def get_config():
    return Config(
        questions=("a, b", 'it\'s "so"', "两行\n $\\nabla$ ", "--x", "~"),
        sampling=SamplingConfig(stop=("\n", "\\n", "\t\\frac\\\\", " ", ",", "'", "\r\n用户：")),
        adapter=AdapterConfig(targets=()),
        data=DataConfig(earlier=("a,b", "c d", 'e"f'), root="a'b $HOME", cleaning=CleaningConfig(repair=False)),
    )
"""


def test_what_help_shows_can_be_given_again(tmp_path):
    path = tmp_path / "odd.py"
    path.write_text(ODD, encoding="utf-8")
    with pytest.raises(HelpRequested) as request:
        parse(["scripts/train.py", "--help"], str(path), Config)
    flags = []
    for field, value in re.findall(
        r"^  (--config\.\S+) \(.*?, default: ((?s:.*?))\)\n {6}", f"{request.value}\n", re.M
    ):
        flags.append(value if value.startswith("--") else f"{field}={value}")
    words = shlex.split(" ".join(flags))
    assert len(words) >= len(list(leaves(Config())))
    expected = read(str(path))
    assert expected.questions[2] == "两行\n $\\nabla$ " and expected.sampling.stop[2] == "\t\\frac\\\\"
    path.write_text("from tests.config.everything import *\ndef get_config(): return Config()", encoding="utf-8")
    assert read(str(path), *words) == expected


def test_home_is_meant_by_a_tilde_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "own.py"
    path.write_text(
        "from tests.config.everything import *\n"
        "def get_config():\n"
        "    data = DataConfig(root='~/c', corpora=(CorpusConfig(name='belle', path='~/x*.json'),), earlier=('~/e',))\n"
        "    return Config(data=data, questions=('~/q',), sampling=SamplingConfig(stop=('~',)))",
        encoding="utf-8",
    )
    names = ("model.weights", "tokenizer.path", "solver.input", "solver.prompts", "data.system_prompts.cache")
    arguments = [f"--config.{name}=~/{name}" for name in names]
    config, workdir = parse(["x", "--workdir=~/w", "--config=~/own.py", *arguments], "none.py", Config)
    given = {leaf.path: leaf.value for leaf in leaves(config)}
    assert [given[name] for name in names] == [f"{tmp_path}/{name}" for name in names]
    assert (workdir, config.data.root, config.data.earlier) == (tmp_path / "w", f"{tmp_path}/c", (f"{tmp_path}/e",))
    assert config.data.corpora[0].path == f"{tmp_path}/x*.json"
    assert config.questions == ("~/q",) and config.sampling.stop == ("~",)
    with pytest.raises(UserError, match="--workdir=~no_such_user/w begins with a user who is not known here"):
        parse(["x", "--workdir=~no_such_user/w"], str(path), Config)


def test_bytes_that_are_no_text_are_told(sft):
    with pytest.raises(UserError, match=r"'--config.questions=\\udcff' is no valid UTF-8"):
        read(sft, "--config.questions=\udcff")
    assert read(sft, "--config.questions=春\U0001f33c").questions == ("春\U0001f33c",)


def test_a_full_disk_is_told_in_one_sentence(sft, monkeypatch, capsys):
    def full(config, workdir):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.argv", ["train.py", "--workdir=runs/x"])
    with pytest.raises(SystemExit) as caught:
        run(full, default_config=sft, kind=Config)
    assert caught.value.code == 1 and capsys.readouterr().err.startswith("error: a file could not be written")
