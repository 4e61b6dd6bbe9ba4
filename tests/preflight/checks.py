"""What must hold of every compiled train step, read from its preflight report.

Axes: B batch, T time, N query heads, V vocabulary.
"""

import math
from typing import Any

from gemma_keras.models.architecture import Architecture


def check_splash(report: dict[str, Any], layers: int, recomputed: bool, soft_cap: bool = True) -> None:
    """All attention runs by kernels, forward and backward, with a cap or without; forward again only if `recomputed`."""
    assert report["attention"] == "splash"
    times: dict[str, int] = {}
    for kernel in report["kernels"]:
        assert kernel["soft_cap"] is soft_cap, kernel
        direction = "forward" if "fwd" in kernel["name"] else kernel["name"]
        times[direction] = times.get(direction, 0) + kernel["count"]
    forward = times.pop("forward")
    assert forward == layers * (2 if recomputed else 1)
    assert len(times) in (1, 2)  # gradients of queries, and of keys and values: by a kernel each, or by one
    assert set(times.values()) == {layers}


def check_visits(report: dict[str, Any], shape: Architecture, length: int, block: int = 512) -> None:
    """Of `block` queries, all layers visit the blocks of keys that some of them see, and no other."""
    kernels = sum(kernel["count"] for kernel in report["kernels"]) // shape.num_layers
    expected: dict[int, int] = {}
    for layer in shape.layers:
        starts = range(0, length, block)
        first = (0 if layer.window is None else max(0, start - layer.window + 1) // block for start in starts)
        blocks = sum(start // block + 1 - at for start, at in zip(starts, first, strict=True))
        expected[blocks] = expected.get(blocks, 0) + kernels
    assert report["kernel_visits"] == [{"blocks": b, "count": n} for b, n in sorted(expected.items())]


def check_sizes(report: dict[str, Any], shape: Architecture, rows: int, length: int) -> None:
    """No array of B·T·V or B·N·T·T elements, neither in the traced program nor, divided, on a device."""
    devices = report["devices"]
    vocabulary = {shape.vocabulary_size, shape.vocabulary_size // devices}
    on_device = [array["shape"] for array in report["largest_arrays"]]
    for arrays, parts in ((report["largest_shapes"], 1), (on_device, devices)):
        logits = rows * length * shape.vocabulary_size // parts
        scores = rows * shape.num_query_heads * length**2 // parts
        assert min(math.prod(array) for array in arrays) < scores  # the list goes on to smaller ones
        for array in arrays:
            assert math.prod(array) not in (logits, scores), array
            assert not vocabulary & set(array) or math.prod(array) < logits, array
            assert array.count(length) < 2 or math.prod(array) < scores, array


def check_collectives(report: dict[str, Any]) -> None:
    """Every exchange has a kind, a size and a reason, and the sums are those of the lines."""
    for line in report["collectives"]:
        assert line["count"] > 0 and line["bytes"] > 0 and line["group"] > 1
        assert line["why"].partition(": ")[2] not in ("", "unnamed"), line
    for kind, sums in report["collectives_by_kind"].items():
        lines = [line for line in report["collectives"] if line["kind"] == kind]
        for name in ("count", "bytes", "bytes_sent", "synchronous_bytes_sent"):
            assert sums[name] == sum(line[name] for line in lines)
