"""How many of the validation rows a run looks at on its way: all, or a fixed part where all would take too long."""

import numpy as np

# Of the time of a run, at most; what is evaluated after it, for `result.json`, is on all rows and does not count.
SHARE = 0.05
# Matrix products of an evaluated token against one that is trained on, N weights: 2 N against 4 N, or 6 N where all are trained.
COST_BESIDE_ADAPTER, COST_BESIDE_ALL = 1 / 2, 1 / 3


def rows_on_the_way(available: int, *, batch_rows: int, times: int, trained_rows: int, cost: float) -> np.ndarray:
    """Which packed validation rows are evaluated each time, i64 in ascending order.

    They follow from counts alone, so that every process and a resumed run choose alike. A part is spread evenly over all rows,
    fills whole batches, and is one batch at least.

    Args:
        available: packed rows there are.
        batch_rows: rows of a batch of evaluation.
        times: evaluations of the run.
        trained_rows: packed rows that it trains on in all its steps.
        cost: time of an evaluated row against that of one that is trained on.

    >>> rows_on_the_way(100, batch_rows=4, times=10, trained_rows=2000, cost=0.5)
    array([ 0,  5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80,
           85, 90, 95])
    """
    batches = max(1, int(SHARE * trained_rows / (times * cost * batch_rows)))
    chosen = min(available, batches * batch_rows)
    return np.arange(chosen) * available // chosen
