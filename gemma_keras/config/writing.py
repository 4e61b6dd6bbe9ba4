"""Files and folders that are there whole or not at all, however a program ends."""

import shutil
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file, in the place of an earlier one and below folders that are made where they are missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def put_in_place(partial: Path, out: Path) -> None:
    """Renames a finished folder to `out`; an earlier one is moved aside first, and then deleted."""
    aside = out.with_name(f".{out.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if out.exists():
        out.rename(aside)
    partial.rename(out)
    shutil.rmtree(aside, ignore_errors=True)
