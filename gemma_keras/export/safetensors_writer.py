"""A safetensors file written as a stream: of all its tensors, one block is in memory at a time.

The format (huggingface.co/docs/safetensors): the length of the header (u64, little-endian), the header (JSON: dtype,
shape and place of every tensor), then the tensors' bytes one after the other, row-major and little-endian.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
HEADER_ALIGNMENT = 8  # bytes; the header is padded with spaces to it, so that readers may map the tensors


@dataclasses.dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor to write; `blocks` gives its elements in order, in arrays of any shape of the dtype `dtype`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    blocks: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize


def write_safetensors(file: Path, entries: Sequence[TensorEntry], metadata: dict[str, str]) -> None:
    """Writes `entries` in their order. The same entries give the same bytes.

    Raises:
        OSError: the file cannot be written, e.g. because the disk is full; names the file.
        ValueError: the blocks of a tensor are of another dtype, or are more or fewer elements than its shape says.
    """
    try:
        with file.open("wb") as opened:
            opened.write(_header(entries, metadata))
            for entry in entries:
                written = 0
                for block in entry.blocks():
                    if block.dtype != jnp.dtype(entry.dtype):
                        raise ValueError(f"a block of {entry.name} is {block.dtype}; expected {entry.dtype}")
                    # bfloat16 has no buffer protocol of its own, bytes have.
                    written += opened.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
                if written != entry.nbytes:
                    raise ValueError(f"the blocks of {entry.name} have {written} bytes; expected {entry.nbytes}")
    except OSError as error:  # those of writing carry no file name of themselves
        raise OSError(error.errno, error.strerror, str(file)) from error


def _header(entries: Sequence[TensorEntry], metadata: dict[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for entry in entries:
        if entry.name in header:
            raise ValueError(f"two tensors are called {entry.name}")
        start, end = end, end + entry.nbytes
        header[entry.name] = {"dtype": DTYPES[entry.dtype], "shape": entry.shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
