"""One hash of numbers, for orders and n-grams alike."""

import numpy as np


def mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of u64 in which every bit of the result depends on every bit given (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
