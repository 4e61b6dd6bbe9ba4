"""Published peaks of TPU devices, as data.

A device is what jax calls one: a core of v2 and v3 (half a chip), a chip of v4 and later.

Sources: Google Cloud's pages "TPU v3", "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" (docs.cloud.google.com/tpu/docs) for
FLOP/s, HBM bandwidth and interconnect; Jouppi et al., "A Domain-Specific Supercomputer for Training Deep Neural
Networks" (CACM 2020) for the links of v2 and v3; usable memory is the limit that libtpu's compiler itself names.
"""

import dataclasses

from gemma_keras.config.errors import UserError

GIB = 1024**3
RING_LINKS = 2  # a ring sends both ways round, over two links of each chip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """Peaks of one device.

    Attributes:
        flops: bf16 matmul FLOP/s.
        memory_gib: HBM that a program may take.
        memory_bandwidth: HBM bytes/s.
        link_bandwidth: bytes/s of one interconnect link in one direction.
    """

    name: str
    flops: float
    memory_gib: float
    memory_bandwidth: float
    link_bandwidth: float

    @property
    def ring_bandwidth(self) -> float:
        """Bytes/s that a device can send in a ring."""
        return RING_LINKS * self.link_bandwidth


# By jax's device kind. Links: v5e 400 GB/s a chip both ways over 4 ports, v6e 800 over 4, v5p 1,200 over 6; v4 6 links of
# 50 GB/s; v2 496 and v3 656 Gbit/s a link and direction, which here both cores of a chip share.
HARDWARE: dict[str, Hardware] = {
    "TPU v2": Hardware(name="v2 core", flops=22.5e12, memory_gib=7.48, memory_bandwidth=350e9, link_bandwidth=62e9),
    "TPU v3": Hardware(name="v3 core", flops=61.5e12, memory_gib=15.48, memory_bandwidth=450e9, link_bandwidth=82e9),
    "TPU v4": Hardware(name="v4", flops=275e12, memory_gib=30.75, memory_bandwidth=1200e9, link_bandwidth=50e9),
    "TPU v5 lite": Hardware(name="v5e", flops=197e12, memory_gib=15.75, memory_bandwidth=819e9, link_bandwidth=50e9),
    "TPU v5": Hardware(name="v5p", flops=459e12, memory_gib=95.74, memory_bandwidth=2765e9, link_bandwidth=100e9),
    "TPU v6 lite": Hardware(name="v6e", flops=918e12, memory_gib=31.25, memory_bandwidth=1638e9, link_bandwidth=100e9),
}


def hardware_of(device_kind: str) -> Hardware:
    """The peaks of a kind of device.

    Raises:
        UserError: its peaks are not in the table.
    """
    if device_kind not in HARDWARE:
        raise UserError(
            f"the peaks of {device_kind!r} are not in the table of gemma_keras/preflight/hardware.py, which has "
            f"{', '.join(HARDWARE)}: choose another --topology, or add them"
        )
    return HARDWARE[device_kind]
