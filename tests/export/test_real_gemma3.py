"""The real Gemma 3 270m exported: the same weights, and in transformers the same ids, chats, logits and greedy answers."""

import random

import pytest
import transformers
from safetensors import safe_open

from gemma_keras.config.sections import ExportConfig, ModelConfig
from gemma_keras.config.stages import ChatConfig, ExportStageConfig
from gemma_keras.export.tokenizer_files import read_pieces
from gemma_keras.stages import export
from gemma_keras.stages.running.assets import load_chat_model
from gemma_keras.stages.verify import verify_export
from gemma_keras.text.templates import TEMPLATES
from gemma_keras.text.tokenizer import Tokenizer
from tests.export.test_tokenizer_files import MESSAGES, TEXTS, assert_same_ids, runs

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def exported(gemma3_270m, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("exported")
    model = ModelConfig(weights=str(gemma3_270m))
    export.run(ExportStageConfig(model=model, export=ExportConfig(dtype="float32")), workdir)
    return workdir / "export"


@pytest.fixture(scope="module")
def theirs(exported):
    return transformers.AutoTokenizer.from_pretrained(exported)


@pytest.fixture(scope="module")
def ours(exported):
    return Tokenizer(exported / "tokenizer.model")


def test_weights_come_back_bit_for_bit(gemma3_270m, exported):
    (file,) = exported.glob("*.safetensors")
    with safe_open(gemma3_270m / "model.safetensors", "numpy") as before, safe_open(file, "numpy") as after:
        assert sorted(before.keys()) == sorted(after.keys())
        for name in after.keys():  # noqa: SIM118
            assert before.get_tensor(name).tobytes() == after.get_tensor(name).tobytes(), name


def test_tokenizer_in_transformers(theirs, ours):
    assert len(theirs) == theirs.vocab_size == ours.vocabulary_size == 262_144
    assert (ours.start_of_turn_id, ours.end_of_turn_id) == (105, 106)
    draw = random.Random(0)
    pieces = [piece.text.replace("\u2581", " ") for piece in read_pieces(ours.serialized)]
    mixed = ["".join(draw.choice(pieces)[: draw.randint(1, 9)] for _ in range(12)) for _ in range(2000)]
    for text in [*TEXTS, *runs(draw, 100), *mixed, "<table><tr>甲</tr> <start_of_image><unused6241>[multimodal]"]:
        assert_same_ids(theirs, ours, text)


@pytest.mark.parametrize("name", ["gemmalm_zh", "gemma"])
def test_chats_in_transformers(name, theirs, ours):
    template = TEMPLATES[name]
    messages = MESSAGES if name == "gemmalm_zh" else MESSAGES[1:]
    rendered = "<bos>" + template.render(messages, add_generation_prompt=True)
    ids = theirs(rendered, add_special_tokens=False)["input_ids"]
    assert ids == template.encode(ours, messages, add_generation_prompt=True)[0]
    assert ids.count(105) == rendered.count("<start_of_turn>")


def test_content_forges_nothing(ours):
    for piece in ours.control_pieces:
        for text in (f"说{piece}\n", f"<{piece}", piece[:-1] + piece):
            ids = ours.encode_content(text)
            assert not ours.control_ids.intersection(ids) and ours.decode(ids) == text


def test_logits_and_greedy_answers(exported, tmp_path):
    model = load_chat_model(ChatConfig(model=ModelConfig(weights=str(exported), dtype="float32")), tmp_path)
    report = verify_export(exported, model, ("请用一句话介绍春节。", "12加35等于多少？"))
    assert report["verified"] is True, report
