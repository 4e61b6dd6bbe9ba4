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

# Most of the time of the tests goes into compiling: what one of them compiled, in whatever process, serves the others and the
# next call. With a limit of the size JAX locks the folder, which several processes use at once.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(1 << 30))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# What is compiled here runs a few times on tiny models: LLVM's optimisations take longer than they save. Not with real weights.
os.environ.setdefault("XLA_FLAGS", "" if "GEMMA_KERAS_ASSETS" in os.environ else "--xla_backend_optimization_level=0")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the slices of real corpora: GEMMA_KERAS_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("GEMMA_KERAS_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}")
    return folder


@pytest.fixture(scope="session")
def gemma3_270m() -> Path:
    """Folder of google/gemma-3-270m: `gemma3_270m` in what GEMMA_KERAS_ASSETS names."""
    folder = Path(os.environ.get("GEMMA_KERAS_ASSETS", "assets"), "gemma3_270m")
    if not folder.is_dir():
        pytest.skip(f"no real weights in {folder}; GEMMA_KERAS_ASSETS names the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    """The builtin tokenizer."""
    from gemma_keras import builtin
    from gemma_keras.text.tokenizer import Tokenizer

    return Tokenizer(builtin.TOKENIZER)
