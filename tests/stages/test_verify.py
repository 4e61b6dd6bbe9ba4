"""The comparison with transformers tells an equal export from one that is not."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gemma_keras.config.sections import ModelConfig
from gemma_keras.config.stages import ChatConfig
from gemma_keras.stages.running.assets import load_chat_model
from gemma_keras.stages.verify import verify_export

QUESTIONS = ("请用一句话介绍春节。", "12加35等于多少？")


@pytest.fixture
def model(base, tmp_path):
    return load_chat_model(ChatConfig(model=ModelConfig(weights=str(base), dtype="float32")), tmp_path)


def test_an_equal_export(base, model):
    report = verify_export(base, model, QUESTIONS)
    assert report["verified"] is True and 0 < report["max_logit_difference"] < 2e-4


def test_nothing_to_compare_is_not_called_equal(base, model):
    assert verify_export(base, model, ("<start_of_turn>model", "很长" * 3000))["verified"] is None


@pytest.mark.parametrize("change", ["weights", "soft cap", "template"])
def test_a_changed_export_is_noticed(change, base, model, tmp_path):
    folder = tmp_path / "changed"
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    if change == "weights":
        (file,) = folder.glob("*.safetensors")
        tensors = load_file(file)
        tensors["model.layers.1.self_attn.q_proj.weight"] = -tensors["model.layers.1.self_attn.q_proj.weight"]
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, file, {"format": "pt"})
    elif change == "soft cap":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"final_logit_softcapping": 3.0}))
    else:
        template = (folder / "chat_template.jinja").read_text().replace("<eos>", "")
        (folder / "chat_template.jinja").write_text(template)
    assert verify_export(folder, model, QUESTIONS)["verified"] is False
