"""Engines whose compiled programs all tests of a process share."""

import pytest

from gemma_keras.inference.engine import Engine
from gemma_keras.models.forward import build_backbone
from tests.inference.models import SMALLEST, varied_params


@pytest.fixture(scope="session")
def engine() -> Engine:
    """With few rows, so that few programs are compiled."""
    return Engine(build_backbone(SMALLEST, "float32"), varied_params(SMALLEST), max_rows=4)


@pytest.fixture(scope="session")
def speaking(tokenizer) -> Engine:
    """With a tokenizer."""
    architecture = SMALLEST.replace(vocabulary_size=tokenizer.vocabulary_size)
    return Engine(build_backbone(architecture, "float32"), varied_params(architecture), tokenizer, max_rows=4)
