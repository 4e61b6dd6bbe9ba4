"""Devices of TPU slices that are not there, to compile programs for.

Importing this module does not import jax, since the variables of `prepare_environment` have to be set before.
"""

import importlib.util
import math
import os
import re
from typing import Any

from gemma_keras.config.errors import UserError, require

EXAMPLES = "v5e:2x4 (v5e-8), v3:2x2 (v3-8), v4:2x2x1 (v4-8), v6e:2x4 (v6e-8), v5p:2x2x1"
ENVIRONMENT = {
    # The CPU runs what preflight itself runs, so that a TPU which is there stays free for training.
    "JAX_PLATFORMS": "cpu",
    # A lock file of another process that uses libtpu would end this one; a compiler shares no device with it.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # libtpu would ask the cloud's metadata server what machine this is, and wait for an answer.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Errors come as exceptions; nothing else is for the user, nor worth a file.
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
}


def prepare_environment() -> None:
    """Sets what libtpu and jax read when they are first used, whatever the shell says; call it before jax is imported."""
    os.environ.update(ENVIRONMENT)


def topology_devices(topology: str) -> list[Any]:
    """The devices of a slice, as jax sees them there: cores on v2 and v3, chips on all others.

    Args:
        topology: generation and chips along each axis, such as `v5e:2x4`.

    Raises:
        UserError: no such slice, or no libtpu.
    """
    found = re.fullmatch(r"(v\d+[a-z]*):(\d+(?:x\d+){0,2})", topology)
    if found is None:
        raise UserError(f"--topology={topology} is no topology: give generation and chips, such as one of {EXAMPLES}")
    require(
        importlib.util.find_spec("libtpu") is not None,
        'libtpu, the compiler for TPU, is not installed: pip install "jax[tpu]", in the version of the jax that is here',
    )
    from jax.experimental import topologies

    sizes = tuple(int(size) for size in found[2].split("x"))
    try:
        return list(
            topologies.get_topology_desc(topology_name=topology, platform="tpu", **_options(found[1], sizes)).devices
        )
    except Exception as error:  # jaxlib raises several kinds
        text = " ".join(str(error).split())
        raise UserError(
            f"--topology={topology} is not known to libtpu ({text[:200]}): give one such as {EXAMPLES}"
        ) from error


def _options(generation: str, sizes: tuple[int, ...]) -> dict[str, Any]:
    """What libtpu has to be told besides the name."""
    if generation == "v4":
        return {"chip_config_name": "megacore"}  # as jax uses v4: both cores of a chip are one device
    if generation in ("v5e", "v6e") and math.prod(sizes) <= 8:
        return {"chips_per_host_bounds": (*sizes, *(1,) * (3 - len(sizes)))}  # one host has up to 8 of these chips
    return {}
