"""What the rows of sequences are told when these join.

Axes: P rows at work, V vocabulary, n entries of a list.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gemma_keras.inference.buckets import power_of_two
from gemma_keras.inference.decode_state import DecodeState, Rows, row_numbers
from gemma_keras.inference.delivery import ActiveSequence
from gemma_keras.inference.sampling import SamplingRows, Tallies


def row_values(
    entering: Sequence[tuple[int, ActiveSequence]], slot_offsets: Sequence[int], state: DecodeState
) -> tuple[np.ndarray, Rows]:
    """Where to put the rows' values i32[P], and the values [P, ...]; P is a power of two.

    A sequence may have tokens already: it goes on after them.
    """
    size, vocabulary = power_of_two(len(entering)), state.rows.stops.shape[1]
    biases = state.rows.bias_ids.shape[1]
    at = row_numbers([row for row, _ in entering], state)
    length, slot_offset, last, step, limit = np.zeros((5, size), np.int32)
    counts = np.zeros((size, vocabulary), np.int32)
    prompt, stops = np.zeros((2, size, vocabulary), bool)
    ids = np.full((size, biases), -1, np.int32)
    values = np.zeros((size, biases), np.float32)
    for index, (_, sequence) in enumerate(entering):
        request = sequence.request
        read = sequence.so_far
        length[index], last[index] = len(read) - 1, read[-1]
        slot_offset[index], step[index] = slot_offsets[index], len(sequence.tokens)
        np.add.at(counts[index], np.array(sequence.tokens, np.int32), 1)
        limit[index] = request.sampling.max_new_tokens
        prompt[index, list(request.prompt)] = True
        stops[index, list(request.stop_ids)] = True
        ids[index, : len(request.logit_bias)] = list(request.logit_bias)
        values[index, : len(request.logit_bias)] = list(request.logit_bias.values())
    sequences = [sequence for _, sequence in entering]
    sequences += [sequences[-1]] * (size - len(sequences))
    sampling = SamplingRows.of([sequence.request.sampling for sequence in sequences])
    sampling = sampling._replace(seed=np.array([sequence.seed for sequence in sequences], np.uint32))
    rows: Any = Rows(
        length=length, slot_offset=slot_offset, last=last, step=step, limit=limit,
        running=np.ones(size, bool), tallies=Tallies(prompt, counts), stops=stops,
        bias_ids=ids, bias_values=values, sampling=sampling,
    )  # fmt: skip
    return at, rows
