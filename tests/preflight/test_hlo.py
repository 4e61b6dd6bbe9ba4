"""Collectives, loops and sizes read from programs that XLA compiled for 8 virtual devices."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jaxlib import _hlo

from gemma_keras.preflight import hlo
from gemma_keras.preflight.collectives import by_kind, find_collectives, largest_arrays, reason, summed
from gemma_keras.preflight.kernels import hbm_bytes

ROWS, WIDE, DEPTH, TURNS = 64, 512, 384, 5

# Writes four programs, as jax gives them, on a mesh of 2 x 4 devices into the folder that is given.
COMPILE = f"""
import pathlib, sys
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from gemma_keras.preflight.hlo import message_of

mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

def spec(shape, *axes):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*axes)))

def place(x, *axes):
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*axes)))

def contracted(x, w):
    return place(jnp.einsum("bd,df->bf", x, w), "data", None)

def looped(x, w):
    return jax.lax.scan(lambda c, _: (place(jnp.tanh(c @ w) @ w.T, "data", None), None), x, None, length={TURNS})[0]

def looped_twice(x, w):
    return jax.lax.scan(lambda c, _: (looped(c, w), None), x, None, length=3)[0]

def gathered(x, w):
    with jax.named_scope("ffw_gating"):
        return jnp.einsum("bd,df->bf", x, place(w, None, None))

x = spec(({ROWS}, {DEPTH}), "data", None)
programs = {{
    "contracted": (contracted, (spec(({ROWS}, {DEPTH}), "data", "model"), spec(({DEPTH}, {WIDE}), "model", None))),
    "looped": (looped, (x, spec(({DEPTH}, {WIDE}), None, "model"))),
    "looped_twice": (looped_twice, (x, spec(({DEPTH}, {WIDE}), None, "model"))),
    "gathered": (gathered, (x, spec(({DEPTH}, {WIDE}), "data", None))),
}}
for name, (function, arguments) in programs.items():
    compiled = jax.jit(function).lower(*arguments).compile()
    pathlib.Path(sys.argv[1], name).write_bytes(message_of(compiled))
"""

# Text as the TPU compiler writes it.
EXCHANGE = """HloModule example

ENTRY %main (p: f32[64]) -> f32[64] {{
  %p = f32[64]{{0}} parameter(0)
  %negated = f32[64]{{0}} negate(%p), metadata={{op_name="jit(step)/transpose(jvp())/query/neg"}}
  %bitcast = f32[64]{{0}} bitcast(%negated)
  ROOT %swapped = f32[64]{{0}} all-to-all(%bitcast), channel_id=1, {groups}, dimensions={{0}}, metadata={{op_name="convert.14"}}
}}
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory) -> dict[str, hlo.Module]:
    folder = tmp_path_factory.mktemp("hlo")
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", COMPILE, str(folder)], check=True, env=os.environ | flags, timeout=120)
    return {path.name: hlo.Module(path.read_bytes()) for path in folder.iterdir()}


def parse(text: str) -> hlo.Module:
    """What XLA's own parser makes of a text."""
    return hlo.Module(_hlo.hlo_module_from_text(text).as_serialized_hlo_module_proto())


def test_a_contraction_over_devices_is_one_all_reduce_of_known_size(modules):
    (found,) = find_collectives(modules["contracted"], 8)
    size = ROWS // 2 * WIDE * 4
    assert (found.kind, found.times, found.bytes, found.group) == ("all-reduce", 1, size, 4)
    assert found.sent == pytest.approx(2 * size * 3 / 4)


def test_loops_multiply(modules):
    for name, times in (("looped", TURNS), ("looped_twice", 3 * TURNS)):
        found = [item for item in find_collectives(modules[name], 8) if item.times > 1]
        assert [(item.kind, item.times, item.bytes, item.group) for item in found] == [
            ("all-reduce", times, ROWS // 2 * DEPTH * 4, 4)
        ]
        assert by_kind(found)["all-reduce"]["bytes"] == times * ROWS // 2 * DEPTH * 4


def test_a_gathered_weight_is_told_with_its_reason(modules):
    (line,) = summed(find_collectives(modules["gathered"], 8))
    assert (line["kind"], line["group"], line["count"]) == ("all-gather", 2, 1)
    assert line["bytes"] == DEPTH * WIDE * 4
    assert line["bytes_sent"] == DEPTH * WIDE * 4 // 2
    assert line["why"] == "step: ffw gate"


GROUPS = (
    ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
    ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=4] {'axis_2'}", 4),
    ("replica_groups=mesh['axis_0'=1,'axis_1'=4,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_1'}", 4),
    ("replica_groups=mesh['axis_0'=8], device_ids=([2,4]T(1,0)) {'axis_0':(2)4}", 4),
    ("replica_groups={}", 8),
)


@pytest.mark.parametrize(("groups", "size"), GROUPS)
def test_groups_are_read_in_all_forms_of_the_compiler(groups, size):
    (found,) = find_collectives(parse(EXCHANGE.format(groups=groups)), 8)
    assert (found.group, found.bytes) == (size, 64 * 4)


def test_what_the_compiler_names_by_a_number_is_told_by_what_it_exchanges():
    (found,) = find_collectives(parse(EXCHANGE.format(groups="replica_groups={}")), 8)
    assert found.why == "backward: query"


def test_largest_arrays_are_those_of_one_device(modules):
    shapes = [array.dims for array, _ in largest_arrays(modules["contracted"], 3)]
    assert shapes == [(DEPTH // 4, WIDE), (ROWS // 2, WIDE), (ROWS // 2, DEPTH // 4)]


def test_bytes_moved_of_a_plain_product_are_its_operands_and_result():
    a, b = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((256, 512), (512, 128)))
    module = parse(jax.jit(lambda a, b: jnp.exp(a + 1)).lower(a, b).compile().as_text())
    assert hbm_bytes(module) == 2 * (256 * 512 * 2)


@pytest.mark.parametrize(
    ("op_name", "why"),
    [
        ("jit(step)/jvp(query)/query/btd,ndh->btnh/dot_general", "forward: query"),
        ("jit(step)/transpose(jvp(jvp()))/rematted_computation/key/dot_general", "computed again: key"),
        ("jit(step)/transpose(jvp(jvp()))/attention_output/dot_general", "backward: attention output"),
        ("jit(step)/jvp(ffw_gating_2)/dot_general", "forward: ffw up"),
        ("jit(step)/jvp(log_probs)/while/body/dot_general", "forward: token log-probabilities"),
        ("jit(step)/add", "step: add"),
        ("", "step: unnamed"),
    ],
)
def test_reasons(op_name, why):
    assert reason(op_name) == why


def beside_a_product() -> hlo.Module:
    """A product beside which a weight is brought together, and whose result goes into a stack; in the TPU compiler's form."""
    return parse(Path(__file__).with_name("beside_a_product.hlo").read_text())


def test_what_a_fusion_hands_on_or_updates_in_place_moves_no_bytes():
    piece, weight, row = 64 * 512 * 2, 512 * 512 * 2, 128 * 512 * 2
    gathers = 2 * (piece + weight)
    product = row + weight + row  # a row of the stack, the kernel, another row of the stack
    sliced_on_chip, flag = row, 4  # which the first fusion writes and the last one reads
    assert hbm_bytes(beside_a_product()) == gathers + product + sliced_on_chip + 2 * flag


def test_collectives_with_nothing_beside_them_are_told_apart():
    found = find_collectives(beside_a_product(), 8)
    assert [(item.kind, item.synchronous) for item in found] == [("all-gather", False), ("all-gather", True)]
    sums = by_kind(found)["all-gather"]
    assert sums["bytes_sent"] == 2 * sums["synchronous_bytes_sent"] == 2 * 512 * 512 * 2 * 7 // 8


@pytest.mark.parametrize("counter", ["s32", "u32"])
def test_forms_that_only_tpu_programs_have(counter):
    text = Path(__file__).with_name("tpu_program.hlo").read_text().replace("s32", counter)
    found = find_collectives(parse(text), 8)
    whole = 2 * 512 * 1024 * 2
    assert [(item.kind, item.times, item.bytes, item.group, item.why) for item in found] == [
        ("all-gather", 4, whole, 8, "forward: query"),  # counter 1, 3, 5, 7
        ("reduce-scatter", 4, whole, 8, "forward: ffw down"),
    ]
    assert all(item.sent == 4 * whole * 7 / 8 for item in found)
    assert [item.synchronous for item in found] == [False, True]
