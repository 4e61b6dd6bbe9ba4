"""The exported folder continues prompts in transformers as the model that was exported does here."""

import pytest
import torch
import transformers

from gemma_keras.export.huggingface import export_hf
from gemma_keras.inference.engine import Engine
from gemma_keras.inference.requests import Request
from gemma_keras.models.forward import build_backbone
from gemma_keras.models.loading import load_params
from gemma_keras.text.templates import TEMPLATES
from tests.inference.models import GREEDY, hf_generate, prompts, varied_params
from tests.models.conftest import small


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.long), "bfloat16"])
def test_greedy_of_the_exported_folder(dtype, tokenizer, tmp_path):
    architecture = small(vocabulary_size=tokenizer.vocabulary_size, num_layers=2)
    folder = tmp_path / "export"
    export_hf(
        varied_params(architecture), architecture, tokenizer, folder, dtype=dtype, template=TEMPLATES["gemmalm_zh"]
    )
    backbone = build_backbone(architecture, "float32")
    engine = Engine(backbone, load_params(backbone, architecture, folder, "float32"))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    asked = prompts(vocabulary=tokenizer.vocabulary_size)
    answers = engine.generate([Request(prompt=prompt, sampling=GREEDY) for prompt in asked])
    for prompt, (answer,) in zip(asked, answers, strict=True):
        assert len(answer.tokens) == 64 and len(set(answer.tokens)) > 8
        assert answer.tokens == hf_generate(model, prompt)
