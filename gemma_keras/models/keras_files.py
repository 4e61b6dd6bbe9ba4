"""The files of a Keras preset: which h5 group holds a variable, and which file a group."""

from pathlib import Path

import h5py

from gemma_keras.models.families import gemma3
from gemma_keras.models.weight_checks import opened, read_weight_map
from gemma_keras.models.weight_table import kind_of

KERAS_FILE, KERAS_INDEX = "model.weights.h5", "model.weights.json"


def keras_group(path: str, family: str) -> str:
    """The h5 group of a variable, e.g. `decoder_block_1/attention/query/kernel` ->
    `layers/gemma_decoder_block_1/attention/query_dense/vars`."""
    first, *layers, _ = path.split("/")
    attribute = kind_of(path).attribute
    if not layers:
        return f"layers/{attribute}/vars"
    number = first.removeprefix("decoder_block_")
    block = "gemma3_decoder_block" if family == gemma3.FAMILY else "gemma_decoder_block"
    return "/".join(
        ["layers", block if number == "0" else f"{block}_{number}", *layers[:-1], attribute or layers[-1], "vars"]
    )


def files_of_groups(folder: Path) -> dict[str, Path]:
    """Which file holds each group; `UserError` where the index is damaged or the file missing."""
    if (folder / KERAS_INDEX).exists():
        weight_map = read_weight_map(folder / KERAS_INDEX)
        # A group may be spread over several files; those of Gemma hold one array each, which the first file has.
        firsts = {group: files[0] if isinstance(files, list) else files for group, files in weight_map.items()}
        return {group.strip("/"): folder / file for group, file in firsts.items()}
    with opened(h5py.File, folder / KERAS_FILE) as file:
        return {name.rpartition("/")[0]: folder / KERAS_FILE for name, _ in datasets(file)}


def datasets(file: h5py.File) -> list[tuple[str, h5py.Dataset]]:
    """All arrays of a file by their full names."""
    found: list[tuple[str, h5py.Dataset]] = []
    file.visititems(lambda name, item: found.append((name, item)) if isinstance(item, h5py.Dataset) else None)
    return found
