"""Several processes that train together: one writes, all read, and all stop at the same step."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gemma_keras.config.errors import UserError
from gemma_keras.config.schema import ParallelConfig


def join(config: ParallelConfig) -> None:
    """Makes this process one of `parallel.processes`; does nothing for a single one. Must run before JAX finds devices.

    Raises:
        UserError: the others cannot be reached.
    """
    if config.processes == 1 or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(config.coordinator, config.processes, config.process)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"process {config.process} of {config.processes} cannot join the others at config.parallel.coordinator="
            f"{config.coordinator} ({str(error).splitlines()[0]}); start all processes with the same address."
        ) from error


def is_writer() -> bool:
    """Whether this process writes the files of the workdir."""
    return jax.process_index() == 0


def wait_for_all(where: str) -> None:
    """Returns when every process has come to this place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def any_of_all(flag: bool) -> bool:
    """Whether the flag is set in any process; all of them have to ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.bool_(flag)).any())


def to_host(tree: Any) -> Any:
    """Arrays as numpy, those that are spread over processes gathered; all processes have to ask."""

    def fetch(array: Any) -> np.ndarray:
        if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
            return np.asarray(multihost_utils.process_allgather(array, tiled=True))
        return np.asarray(array)

    return jax.tree.map(fetch, tree)
