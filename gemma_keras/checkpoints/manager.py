"""Checkpoints of a run: everything that a training state holds, written whole or not at all (orbax)."""

import errno
import os
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from gemma_keras.config.errors import UserError
from gemma_keras.training.state import TrainState


class Checkpoints:
    """The folder `<workdir>/checkpoints`, one sub-folder a step; the newest `keep` of them stay.

    The data step and the random keys derive from the step, so a state is all that a run needs to go on exactly.
    """

    def __init__(self, folder: Path, keep: int = 2):
        # Saving is synchronous: the next step donates the very buffers that an asynchronous save would still read.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest_step(self) -> int | None:
        """The newest complete step; None when there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Writes a step; one that is there already stays as it is.

        Raises:
            OSError: the disk is full.
        """
        if step == self._manager.latest_step():
            return
        try:
            self._manager.save(step, args=ocp.args.StandardSave(state), force=True)
        except ValueError as error:
            if "RESOURCE_EXHAUSTED" in str(error):  # tensorstore's word for it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{self._manager.directory}/{step}") from error
            raise

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of `step`, with the structure, shapes and placement of `like`.

        Raises:
            UserError: the checkpoint does not fit this configuration, or is one of another version of this package.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"Checkpoint {self._manager.directory}/{step} is damaged or does not fit this configuration or this version "
                f"of the package ({str(error).splitlines()[0]}); give the configuration that wrote it, delete this folder to "
                "go on from the checkpoint before it, or begin anew in another --workdir."
            ) from error

    def close(self) -> None:
        """Waits for pending work and frees the manager."""
        self._manager.close()
