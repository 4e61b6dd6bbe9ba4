"""Several devices on a CPU, for processes of their own: the number of devices is fixed when JAX starts."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def environment_of(devices: int) -> dict[str, str]:
    """Environment of a process whose JAX sees so many devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(REPOSITORY)}
