"""Every stage asks, trains and exports in the template of the weights' folder, and tells where another one is named."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import transformers

from gemma_keras.config.errors import UserError
from gemma_keras.config.loading import taken
from gemma_keras.config.stages import EvaluateConfig
from gemma_keras.data.pipeline import PreparedSplit
from gemma_keras.inference.requests import Request
from gemma_keras.stages import chat, evaluate, export, prepare, solve, training
from gemma_keras.stages.running.assets import load_chat_model, resolve_template
from gemma_keras.text.jinja_templates import write_jinja
from gemma_keras.text.templates import CLOSING, TEMPLATES, get_template
from gemma_keras.text.tokenizer import Tokenizer
from tests.chat_templates import GOOGLE, OTHER
from tests.config.everything import (
    AdapterConfig,
    Config,
    CorpusConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    SamplingConfig,
    SolverConfig,
    TrainConfig,
)

QUESTION = "春天有哪些花？"
LINE_ENDS = "\n\r"
FILES = ("chat_template.jinja", "chat_template_training.jinja", "tokenizer_config.json")
# Which of ours each is, and its text.
FORMS = {name: ("gemma", text) for name, text in GOOGLE.items()}
FORMS |= {name: (name, write_jinja(template)) for name, template in TEMPLATES.items()}


@pytest.fixture
def folder(base, tmp_path):
    """Makes a folder of the base's weights with a chat template as Google's have it: in tokenizer_config.json."""

    def make(text: str) -> Path:
        made = tmp_path / "weights"
        made.mkdir()
        for path in base.iterdir():
            if path.name not in FILES:
                shutil.copyfile(path, made / path.name)
        config = json.loads((base / "tokenizer_config.json").read_text()) | {"chat_template": text}
        (made / "tokenizer_config.json").write_text(json.dumps(config))
        return made

    return make


def configured(folder: Path, **data) -> Config:
    return Config(
        model=ModelConfig(weights=str(folder), dtype="float32"),
        data=DataConfig(validation=(CorpusConfig(name="gemmalm_chinese", limit=4),), sequence_length=128, **data),
        sampling=SamplingConfig(max_new_tokens=8, temperature=1.0),
        solver=SolverConfig(name="normal"),
        questions=(QUESTION,),
    )


def ids_in_transformers(folder: Path) -> list[int]:
    """Of the question."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": QUESTION}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_is_evaluated_and_exported_in_its_own_template(form, folder, tmp_path, capsys):
    name, text = FORMS[form]
    config = configured(folder(text))
    weights = Path(config.model.weights)
    model = load_chat_model(config, tmp_path)
    ids = ids_in_transformers(weights)
    assert model.template.prompts(model.tokenizer, [[{"role": "user", "content": QUESTION}]]) == [ids]
    assert model.template.name == name

    evaluate.run(taken(config, EvaluateConfig), tmp_path / "evaluate")
    split = PreparedSplit.load(tmp_path / "evaluate/data/valid")
    closing = split.tokens[0][split.kinds[0] == CLOSING]
    assert model.tokenizer.decode(closing, skip_control=False) == TEMPLATES[name].blocks["model"].closing

    kept = {}
    for place, source in (("once", weights), ("again", tmp_path / "once/export")):
        moved = dataclasses.replace(config, model=ModelConfig(weights=str(source), dtype="float32"))
        export.run(moved, tmp_path / place)
        kept[place] = {file: (tmp_path / place / "export" / file).read_bytes() for file in FILES}
    assert kept["once"] == kept["again"] and kept["once"]["chat_template.jinja"] == text.encode()
    assert ids_in_transformers(tmp_path / "again/export") == ids
    assert "is used, though" not in capsys.readouterr().err


@pytest.mark.parametrize("form", ["gemma 2", "labels within a line"])
def test_chat_and_solvers_ask_in_the_folders_template(form, folder, tmp_path, capsys):
    config = configured(folder(OTHER.get(form) or FORMS[form][1]))
    ids = ids_in_transformers(Path(config.model.weights))
    chat.run(config, tmp_path / "chat")
    model = load_chat_model(config, tmp_path)
    ((answer,),) = model.engine.generate([Request(prompt=ids, sampling=config.sampling, stop_ids=model.stop_ids)])
    assert capsys.readouterr().out == f"> {QUESTION}\n{model.tokenizer.decode(answer.tokens).strip(LINE_ENDS)}\n\n"
    solve.run(config, tmp_path / "solve")
    trace = json.loads((tmp_path / "solve/traces.jsonl").read_text())["trace"]
    assert trace["cost"]["prompt_tokens"] == len(ids)


def test_a_template_of_others_is_for_inference_only(folder, tmp_path):
    weights = folder(OTHER["labels within a line"])
    config = configured(weights)
    export.run(config, tmp_path / "export")
    exported = tmp_path / "export/export"
    assert (exported / "chat_template.jinja").read_text() == OTHER["labels within a line"]
    assert not (exported / "chat_template_training.jinja").exists()
    assert ids_in_transformers(exported) == ids_in_transformers(weights)
    trained = dataclasses.replace(config, adapter=AdapterConfig(method="lora"))
    for number, (stage, asked) in enumerate(((training, trained), (prepare, config), (evaluate, config))):
        with pytest.raises(UserError, match="none of ours, .*with --config.data.template") as error:
            stage.run(asked, tmp_path / f"work{number}")
        assert str(weights) in str(error.value) and not (tmp_path / f"work{number}/data").exists()
    named = configured(weights, template="gemma")
    assert prepare.run(named, tmp_path / "named")["validation"]["rows"] == 4


def test_a_template_that_cannot_be_used_is_told_before_the_weights_are_read(folder, tmp_path):
    weights = folder("{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    for file in weights.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(UserError, match="changes what these messages say"):
        chat.run(configured(weights), tmp_path / "chat")


@pytest.mark.parametrize(("form", "kind"), [("gemma 3", "gemma"), ("no place for a system", "none of ours")])
def test_another_template_that_is_named_is_used_and_told(form, kind, folder, tmp_path, capsys):
    weights = folder((GOOGLE | OTHER)[form])
    export.run(configured(weights, template="passage"), tmp_path / "export")
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "data.template" in line)
    assert (
        f"config.data.template=passage is used, though the chat template of {weights} is another one ({kind})" in line
    )
    assert (tmp_path / "export/export/chat_template.jinja").read_text() == write_jinja(TEMPLATES["passage"])


def test_the_folders_template_may_be_named(folder, tmp_path, capsys):
    template = resolve_template(configured(folder(GOOGLE["gemma 2"]), template="gemma"))
    assert template.source == GOOGLE["gemma 2"] and capsys.readouterr().err == ""


def test_without_a_folder_or_its_template(folder, tmp_path):
    assert resolve_template(Config()) == TEMPLATES["gemmalm_zh"]
    assert resolve_template(Config(data=DataConfig(template="gemma"))) == TEMPLATES["gemma"]
    for template in ("auto", "gemma"):
        config = configured(tmp_path / "missing", template=template)
        assert resolve_template(config) == get_template(template)


def test_training_keeps_the_template_and_goes_on_with_it(folder, tmp_path):
    config = configured(folder(GOOGLE["gemma 3"]), corpora=(CorpusConfig(name="belle", limit=20),))
    config = dataclasses.replace(
        config,
        adapter=AdapterConfig(method="lora", init_r=2),
        train=TrainConfig(steps=2, batch_rows=2, save_every=1),
        optim=OptimConfig(warmup=0),
    )
    work = tmp_path / "work"
    training.run(config, work)
    split = PreparedSplit.load(work / "data/train")
    tokenizer = Tokenizer(work / "export/tokenizer.model")
    closing = split.tokens[0][split.kinds[0] == CLOSING]
    assert tokenizer.decode(closing, skip_control=False) == "<end_of_turn>"
    before = {file: (work / "export" / file).read_bytes() for file in FILES}
    assert before["chat_template.jinja"] == GOOGLE["gemma 3"].encode()
    # What is trained next finds it there.
    assert resolve_template(configured(work / "export")).source == GOOGLE["gemma 3"]
    (work / "result.json").unlink()
    shutil.rmtree(work / "export")
    training.run(config, work)
    assert {file: (work / "export" / file).read_bytes() for file in FILES} == before
