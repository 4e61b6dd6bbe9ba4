"""What a batch is: `data` makes it, objectives and evaluation read it.

B packed rows, T tokens. A batch on the host is a dictionary of numpy arrays; of preference pairs every array has a leading
axis of 2, the chosen and the rejected side, packed alike.

    tokens, targets        i32[B,T]  targets[b,t] = tokens[b,t+1] within a segment; 0 at a segment's last token
    loss_weights           f32[B,T]  of the target: 1 where it carries loss (`data.loss_on`)
    target_kinds           u8[B,T]   0 no target, or one not to be learnt, 1 prompt, 2 closing, 3 content
    segment_ids            i32[B,T]  rows packed together count from 1; 0 is padding
    positions              i32[B,T]  from 0 in every segment
    row_index              i32[B,T]  which prepared row; -1 is padding
"""

import numpy as np

Batch = dict[str, np.ndarray]

DTYPES: dict[str, type] = {
    "tokens": np.int32,
    "targets": np.int32,
    "segment_ids": np.int32,
    "positions": np.int32,
    "row_index": np.int32,
    "target_kinds": np.uint8,
    "loss_weights": np.float32,
}


def batch_shape(rows: int, length: int, *, pairs: bool) -> tuple[int, ...]:
    """The shape of every array of a batch of `rows` packed rows of `length` tokens, or of as many pairs of rows."""
    return (2, rows, length) if pairs else (rows, length)


def padding_batch(rows: int, length: int) -> Batch:
    """A batch without pairs that holds nothing but padding, to be filled in."""
    batch: Batch = {name: np.zeros((rows, length), dtype) for name, dtype in DTYPES.items()}
    batch["row_index"][:] = -1
    return batch
