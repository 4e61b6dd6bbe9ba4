"""A base model to tune, and a folder for what is compiled and generated on the way."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """gemma2_tiny with two layers, as it is drawn, exported."""
    from gemma_keras import builtin
    from gemma_keras.export.huggingface import export_hf
    from gemma_keras.models.families.registry import get_architecture
    from gemma_keras.models.forward import build_backbone, initial_params
    from gemma_keras.text.templates import TEMPLATES
    from gemma_keras.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(builtin.TOKENIZER)
    architecture = get_architecture("gemma2_tiny").replace(num_layers=2, vocabulary_size=tokenizer.vocabulary_size)
    folder = tmp_path_factory.mktemp("base") / "export"
    export_hf(
        initial_params(build_backbone(architecture, "float32"), 0), architecture, tokenizer, folder, dtype="float32",
        template=TEMPLATES["gemmalm_zh"],
    )  # fmt: skip
    return folder
