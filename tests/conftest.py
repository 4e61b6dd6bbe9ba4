"""Settings and fixtures that all tests share."""

import os
from pathlib import Path

import pytest
import torch

# torch's own threads fight with XLA's on a small machine, and small models gain nothing from them.
torch.set_num_threads(1)

os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the slices of real corpora: GEMMA_KERAS_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("GEMMA_KERAS_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}")
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    """The builtin tokenizer."""
    from gemma_keras import builtin
    from gemma_keras.text.tokenizer import Tokenizer

    return Tokenizer(builtin.TOKENIZER)
