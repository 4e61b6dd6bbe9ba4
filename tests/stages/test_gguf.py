"""A GGUF file in the place of a folder: tokenizer, template, training and export; and the real Gemma 3."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from configs import quickstart
from gemma_keras import builtin
from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import ExportConfig, ModelConfig, TokenizerConfig
from gemma_keras.config.serialization import to_dict
from gemma_keras.config.stages import EvaluateConfig, ExportStageConfig
from gemma_keras.export.tokenizer_files import CONTROL, SPACE, USER_DEFINED, read_pieces
from gemma_keras.models.families.registry import get_architecture
from gemma_keras.models.forward import build_backbone, forward, logits
from gemma_keras.models.loading import describe_weights, load_params
from gemma_keras.stages import evaluate, export, training
from gemma_keras.stages.running import workdir
from gemma_keras.stages.running.assets import resolve_template, resolve_tokenizer
from gemma_keras.text.jinja_templates import write_jinja
from gemma_keras.text.templates import TEMPLATES
from gemma_keras.text.tokenizer import Tokenizer
from tests.models.gguf_files import save

TEXTS = [
    "你好，世界！",
    "a  b   c\n\n\t\td",
    "<b>粗</b>  <start_of_turn>user\n<eos>",
    "龘 😀 naïve   1234\r\n",
    "    x",
]


def keys(padding: int = 0, **changes) -> dict:
    """The builtin tokenizer as llama.cpp's converter writes it: turn tokens are control pieces, blanks are blanks in
    user-defined pieces, and rows beyond the pieces have pieces."""
    tokenizer = Tokenizer(builtin.TOKENIZER)
    tokens, scores, types = [], [], []
    for number, (text, score, kind) in enumerate(read_pieces(builtin.TOKENIZER.read_bytes())):
        steers = number in tokenizer.control_ids
        tokens.append(text.replace(SPACE, " ") if kind == USER_DEFINED else text)
        scores.append(-1000.0 if steers or kind == USER_DEFINED else score)
        types.append(CONTROL if steers else kind)
    rows = range(len(tokens), len(tokens) + padding)
    values = {
        "model": "llama",
        "tokens": tokens + [f"[PAD{row}]" for row in rows],
        "scores": scores + [-10000.0] * padding,
        "token_type": types + [5] * padding,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in (values | changes).items()}


def model(path: Path, padding: int = 0, more: dict | None = None, **changes) -> str:
    architecture = get_architecture("gemma3_tiny").replace(num_layers=2, vocabulary_size=2560 + padding)
    return str(save(architecture, path, more=keys(padding, **changes) | (more or {})))


def exporting(weights: str) -> ExportStageConfig:
    return ExportStageConfig(model=ModelConfig(weights=weights), export=ExportConfig(dtype="float32"))


@pytest.mark.parametrize("padding", [0, 64])
def test_token_ids(padding, tokenizer, tmp_path):
    config = exporting(model(tmp_path / "model.gguf", padding))
    found = resolve_tokenizer(config, tmp_path / "work")
    assert found.vocabulary_size == 2560 and found.control_pieces == tokenizer.control_pieces
    assert found.encode_content_batch(TEXTS) == tokenizer.encode_content_batch(TEXTS)
    assert [found.encode_with_control(text) for text in TEXTS] == list(map(tokenizer.encode_with_control, TEXTS))


def test_a_workdir_with_its_tokenizer_is_free_for_another_configuration(tmp_path):
    """As one of a folder is, until there is a result or a checkpoint: a run that failed early may be mended and called again."""
    config = exporting(model(tmp_path / "model.gguf"))
    workdir.record(tmp_path, to_dict(config))
    resolve_tokenizer(config, tmp_path)
    workdir.claim(tmp_path, to_dict(exporting(model(tmp_path / "another.gguf"))))


def test_export_is_a_folder_with_the_same_model(tmp_path):
    weights = model(tmp_path / "model.gguf", 64, {"tokenizer.chat_template": write_jinja(TEMPLATES["gemma"])})
    folder = Path(export.run(exporting(weights), tmp_path / "work")["export_dir"])
    given, found = (load_params(build_backbone(shape, "float32"), shape, path, "float32")
                    for path in (weights, folder) for shape in [describe_weights(folder)])  # fmt: skip
    assert describe_weights(weights).replace(name="export") == describe_weights(folder)
    assert all(np.array_equal(given[path], found[path]) for path in given | found)
    assert (folder / "chat_template.jinja").read_text(encoding="utf-8") == write_jinja(TEMPLATES["gemma"])
    assert Tokenizer(folder / "tokenizer.model").encode_content_batch(TEXTS) == Tokenizer(
        builtin.TOKENIZER
    ).encode_content_batch(TEXTS)


def test_a_file_without_a_template_gets_ours(tmp_path):
    assert resolve_template(exporting(model(tmp_path / "model.gguf"))).name == "gemmalm_zh"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": "gpt2"}, "a tokenizer of kind 'gpt2', .* --config.tokenizer.path"),
        ({"scores": [0.0]}, "no whole tokenizer, .* --config.tokenizer.path"),
    ],
)
def test_files_without_a_sentencepiece_model(changes, message, tmp_path):
    config = exporting(model(tmp_path / "model.gguf", **changes))
    with pytest.raises(UserError, match=message):
        resolve_tokenizer(config, tmp_path)
    named = dataclasses.replace(config, tokenizer=TokenizerConfig(path=str(builtin.TOKENIZER)))
    assert resolve_tokenizer(named, tmp_path).vocabulary_size == 2560


def test_a_folder_that_holds_only_the_file(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="a GGUF file; give that file itself"):
        resolve_tokenizer(exporting(str(tmp_path)), tmp_path)


def test_a_piece_of_an_unknown_type(tmp_path):
    types = keys()["tokenizer.ggml.token_type"]
    with pytest.raises(UserError, match="model.gguf is damaged"):
        resolve_tokenizer(exporting(model(tmp_path / "model.gguf", token_type=[*types[:-1], 9])), tmp_path)


@pytest.mark.long
def test_tuning_and_evaluation_and_another_file_in_the_same_workdir(tmp_path):
    whole = quickstart.get_config().sft
    data = dataclasses.replace(
        whole.data, corpora=tuple(dataclasses.replace(c, limit=40) for c in whole.data.corpora), sequence_length=128
    )
    weights = ModelConfig(weights=model(tmp_path / "model.gguf"), dtype="float32")
    train = dataclasses.replace(whole.train, steps=4, batch_rows=2, save_every=2)
    config = dataclasses.replace(whole, model=weights, data=data, train=train)
    result = training.run(config, tmp_path / "run")
    assert result["steps"] == 4
    inputs = json.loads((tmp_path / "run" / "inputs.json").read_text())
    assert list(inputs["weights"]) == ["model.gguf"]
    figures = evaluate.run(EvaluateConfig(model=weights, data=data), tmp_path / "evaluate")
    assert figures["perplexity_content"] > 1
    (tmp_path / "run" / "result.json").unlink()
    save(get_architecture("gemma3_tiny").replace(num_layers=2), Path(weights.weights),
         more=keys() | {"general.name": "another"})  # fmt: skip
    with pytest.raises(UserError, match="weights"):
        training.run(config, tmp_path / "run")


def test_the_real_files_logits_are_those_of_its_folder_bit_for_bit(gemma3_270m, tmp_path):
    folder = gemma3_270m
    file = next(folder.parent.glob("**/gemma-3-270m-q4_k_m.gguf"))
    shape = describe_weights(file)
    assert shape == describe_weights(folder).replace(name=shape.name)
    mine = resolve_tokenizer(exporting(str(file)), tmp_path)
    text = "春天来了，小明和同学们去公园里放风筝。The weather is fine."
    ids = mine.encode_content(text)
    assert ids == Tokenizer(folder / "tokenizer.model").encode_content(text)
    # Google's tokenizer has runs of blanks as pieces; the folder's has them as literal blanks, which no text matches.
    assert mine.encode_content("a  b   c")[1::2] == [138, 139]
    backbone = build_backbone(shape, "float32")
    tokens = np.array([[mine.bos_id, *ids]], np.int32)
    positions = np.arange(tokens.shape[1])[None]
    found = []
    for weights in (file, folder):
        params = load_params(backbone, shape, weights, "float32")
        hidden = forward(backbone, params, tokens, positions, np.ones_like(tokens))
        found.append(np.asarray(logits(backbone, params, hidden)))
    assert np.ptp(found[0]) > 10 and np.array_equal(*found)
