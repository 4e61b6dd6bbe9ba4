"""Checks of a folder of weights before and while it is read: each thing that cannot be loaded has a sentence of its own."""

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from gemma_keras.config.errors import UserError
from gemma_keras.text.tokenizer import IMAGE_ENTRY

# The dtypes of Gemma weights in a safetensors header.
SAFETENSORS_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
# Tensors that some checkpoints carry and that hold nothing new: the tied output matrix, RoPE's constants.
IGNORED = re.compile(r"lm_head\.weight|.*\.rotary_emb\.inv_freq")
# What bitsandbytes, GPTQ, AWQ, compressed-tensors, FP8, HQQ and MLX keep beside or in place of a matrix.
QUANTIZED = re.compile(
    r".*\.(absmax|quant_map|nested_\w+|quant_state\..+|SCB|weight_format|q?weight_(scale|zero_point|packed|shape)\w*|qweight"
    r"|qzeros|g_idx|scales|biases|input_scale|W_q)"
)
MOST_PADDING = 256  # rows of embeddings are rounded up to a multiple of a power of two, up to this one
_LFS_POINTER = b"version https://git-lfs"
_OTHER_FORMATS = {
    "adapter_config.json": "a PEFT adapter without its model; merge the two (merge_and_unload of peft) and save the whole",
    "*.gguf": "a GGUF file; give that file itself instead of the folder",
    "pytorch_model*.bin": "weights as pickles (pytorch_model.bin); save them with save_pretrained, which writes safetensors",
    "*.ckpt": "weights as a checkpoint of PyTorch; save them with save_pretrained, which writes safetensors",
}


def require_known_format(folder: Path, wanted: str) -> None:
    """`UserError` that names what `folder` has in place of the file `wanted`."""
    for pattern, what in _OTHER_FORMATS.items():
        if any(folder.glob(pattern)):
            raise UserError(f"{folder} has no {wanted} but {what}")


def require_plain_numbers(folder: Path, config: Mapping[str, Any]) -> None:
    """`UserError` where the tensors of a Hugging Face folder are quantized; files that cannot be read are passed over.

    What counts are the tensors: a `quantization_config` stays behind in many a folder whose weights are whole again.
    """
    stated = config.get("quantization_config") or config.get("quantization") or {}
    method = stated.get("quant_method", "") if isinstance(stated, dict) else ""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as opened:
                dtypes = {name: str(opened.get_slice(name).get_dtype()) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            continue
        for name, dtype in sorted(dtypes.items()):
            if dtype not in SAFETENSORS_DTYPES or QUANTIZED.fullmatch(name):
                raise quantized(folder, f"{name} in {file.name} is of dtype {dtype}", method)


def quantized(folder: str | Path, sign: str, method: str = "") -> UserError:
    """The error for weights in few bits, which `sign` shows; `method` as config.json calls it."""
    how = f" ({method})" if method else ""
    return UserError(
        f"{folder} holds quantized weights{how}: {sign}, but weights have to be {', '.join(SAFETENSORS_DTYPES)}; give the "
        "model as it was before, or what model.dequantize() of transformers makes of it"
    )


def is_padded(rows: int, pieces: int) -> bool:
    """Whether `rows` of embeddings are what rounding up to a multiple of a power of two makes of `pieces`.

    >>> is_padded(2624, 2560), is_padded(2561, 2560), is_padded(4096, 2560)
    (True, False, False)
    """
    surplus = rows - pieces
    multiple = max(8, 1 << (surplus - 1).bit_length())  # the least that could ask for so many
    return surplus > 0 and multiple <= MOST_PADDING and rows % multiple == 0


def require_no_more_tokens(folder: Path, pieces: int) -> None:
    """`UserError` where a Hugging Face folder has tokens from id `pieces` on, which its tokenizer.model lacks.

    Gemma 3's entry for images does not count.
    """
    listed = ((number, text) for text, number in _added_tokens(folder) if text != IMAGE_ENTRY)
    beyond = sorted((number, text) for number, text in listed if number >= pieces)
    if beyond:
        raise UserError(
            f"{folder} has added the token {beyond[0][1]!r} (id {beyond[0][0]}) to the {pieces} pieces of its tokenizer.model, "
            "and only those pieces can be used here: give a model whose tokens are all in tokenizer.model"
        )


def _added_tokens(folder: Path) -> Iterator[tuple[str, int]]:
    """Tokens and ids as the files of a tokenizer list them: transformers 5 in the last one alone, earlier ones in several."""
    if (folder / "tokenizer_config.json").exists():
        listed = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
        yield from ((str(token.get("content")), int(number)) for number, token in listed.items())
    if (folder / "added_tokens.json").exists():
        yield from read_json(folder / "added_tokens.json").items()
    if (folder / "tokenizer.json").exists():
        listed = read_json(folder / "tokenizer.json").get("added_tokens") or []
        yield from ((str(token.get("content")), int(token.get("id", 0))) for token in listed)


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; `UserError` where there is none."""
    try:
        data = file.read_bytes()
        value = json.loads(data.decode("utf-8-sig"))
    except OSError as error:
        require_known_format(file.parent, file.name)
        raise UserError(f"cannot read {file} ({error.strerror}); download the model again") from error
    except ValueError as error:
        if data.startswith(_LFS_POINTER):
            raise damaged(file, error) from error
        raise UserError(f"{file} is not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} is no JSON object; download it again")
    return value


def read_weight_map(index: Path) -> dict[str, Any]:
    """What the index of a folder says about the files of its tensors; `UserError` where that is nothing."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(f"{index} has no weight_map; download it again")
    return weight_map


@contextlib.contextmanager
def opened(open_file: Callable[[Path], AbstractContextManager[Any]], file: Path) -> Iterator[Any]:
    """A file of weights; `UserError` where it is missing, or found to be damaged while it is read."""
    if not file.exists():
        raise UserError(f"{file} is missing, though the index names it; download it again")
    try:
        with open_file(file) as content:
            yield content
    except (SafetensorError, OSError, KeyError) as error:
        raise damaged(file, error) from error


def damaged(file: str | Path, error: Exception) -> UserError:
    """The error for a file that breaks off, or that Git never fetched."""
    try:
        with Path(file).open("rb") as opened:
            start = opened.read(len(_LFS_POINTER))
    except OSError:
        start = b""
    if start == _LFS_POINTER:
        return UserError(f"{file} is a pointer of Git LFS, not the file itself; run git lfs pull where it was cloned")
    return UserError(f"{file} is damaged or cut short ({error}); download it again")


def require_names(expected: Iterable[str], found: Iterable[str], folder: Path) -> None:
    """`UserError` unless the tensors are those that config.json describes, apart from what says nothing new."""
    expected, found = set(expected), set(found)
    missing = sorted(expected - found)
    unknown = sorted(name for name in found - expected if not IGNORED.fullmatch(name))
    if missing:
        _require_no_prefix(missing[0], unknown, folder)
    for names, what in ((missing, "lacks"), (unknown, "has besides what config.json describes")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{folder} {what} the tensor {names[0]}{more}; download the model again")


def _require_no_prefix(missing: str, unknown: list[str], folder: Path) -> None:
    """`UserError` where the tensor is there under a longer or a shorter name, as wrappers around a model save it."""
    bare = missing.removeprefix("model.")
    for name in unknown:
        if name == bare or name.endswith(f".{bare}"):
            raise UserError(
                f"{folder} calls the tensor {missing} {name}, as a wrapper or a part of the model saves it; "
                "save the whole model with save_pretrained of transformers"
            )


def require_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...], file: Path) -> None:
    """`UserError` unless the shapes are equal."""
    shape, expected = tuple(shape), tuple(expected)
    if shape != expected:
        raise UserError(f"{name} in {file} has shape {shape}, but config.json says {expected}; use a matching pair")
