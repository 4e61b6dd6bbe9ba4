"""Validation on the way takes a twentieth of a run, on the same rows each time."""

import numpy as np
import pytest

from gemma_keras.stages.running.validation import SHARE, rows_on_the_way

RUN = {"batch_rows": 8, "times": 10, "cost": 0.5}


def test_all_rows_where_they_are_cheap():
    np.testing.assert_array_equal(rows_on_the_way(37, trained_rows=8_000, **RUN), np.arange(37))


@pytest.mark.parametrize("trained_rows", [1_000, 3_000, 20_000, 65_424])
def test_a_part_takes_its_share_of_the_time_and_lies_all_over(trained_rows):
    rows = rows_on_the_way(4_000, trained_rows=trained_rows, **RUN)
    spent = len(rows) * RUN["times"] * RUN["cost"] / trained_rows
    assert len(rows) % 8 == 0 and len(set(rows)) == len(rows)
    assert spent <= SHARE < spent + 8 * RUN["times"] * RUN["cost"] / trained_rows
    gaps = np.diff([*rows, 4_000])
    assert rows[0] == 0 and gaps.max() - gaps.min() <= 1


def test_a_batch_at_least():
    assert len(rows_on_the_way(4_000, trained_rows=10, **RUN)) == 8
    assert len(rows_on_the_way(3, trained_rows=10, **RUN)) == 3
