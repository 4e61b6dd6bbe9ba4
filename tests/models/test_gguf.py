"""Weights and shapes from GGUF files."""

import gguf
import numpy as np
import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.models.families.registry import ARCHITECTURES, get_architecture
from gemma_keras.models.forward import build_backbone
from gemma_keras.models.gguf_file import GgufFile, StoredTensor, as_hf_config, from_hf_config
from gemma_keras.models.loading import describe_weights, load_params, weight_files
from tests.models import gguf_files
from tests.models.conftest import lively_params, small, small_gemma1
from tests.models.gguf_files import F32, metadata, save, stored_tensors, write
from tests.models.test_loading import assert_same, load

Q8_0, F16, BF16 = (getattr(gguf.GGMLQuantizationType, name) for name in ("Q8_0", "F16", "BF16"))


def small_gemma3(**changes):
    """A Gemma 3 of 7 layers, of which the sixth sees everything."""
    sizes = dict(num_layers=7, hidden_dim=64, intermediate_dim=96, vocabulary_size=97, sliding_window=8)
    return get_architecture("gemma3_tiny").replace(**{**sizes, **changes})


FAMILIES = pytest.mark.parametrize(
    "architecture",
    [small_gemma1(), small(query_pre_attn_scalar=16), small_gemma3()],
    ids=["Gemma 1", "Gemma 2", "Gemma 3"],
)


def expected(architecture, block_type=F32):
    """What is stored, by path: in few bits dequantised by the library, norms less 1."""
    params = {}
    for path, value in lively_params(architecture).items():
        params[path] = (value + np.float32(1)) - np.float32(1) if path.endswith("scale") else value
    if block_type == F32:
        return params
    from gemma_keras.models.hf_names import hf_tensors

    stored = stored_tensors(architecture, block_type)
    for tensor in hf_tensors(architecture):
        array, kind = stored[tensor.kind.gguf_name(tensor.layer)]
        if kind != F32:
            params[tensor.path] = tensor.from_hf(gguf.dequantize(gguf.quantize(array, kind), kind))
    return params


@FAMILIES
def test_shapes_and_weights(architecture, tmp_path):
    path = save(architecture, tmp_path / "model.gguf")
    assert describe_weights(path) == architecture.replace(name="model")
    assert_same(load(path), expected(architecture))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("block_type", [F16, BF16, Q8_0], ids=["F16", "BF16", "Q8_0"])
def test_types_of_blocks(block_type, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr("gemma_keras.models.gguf_file.BLOCK_NUMBERS", 64 * 10)  # so that a tensor is several parts
    path = save(small(), tmp_path / "model.gguf", block_type)
    params = load(path, dtype)
    assert {value.dtype.name for value in params.values()} == {dtype}
    assert_same(params, expected(small(), block_type))


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_published_shapes_follow_from_what_files_say(architecture, tmp_path):
    """The query scale of 27b, the local RoPE and the pattern of layers stand in no file."""
    rows = StoredTensor(F32, (architecture.vocabulary_size, architecture.hidden_dim), (), np.dtype(np.float32), 0)
    file = GgufFile(tmp_path / "x.gguf", metadata(architecture), {"token_embd.weight": rows})
    assert from_hf_config(as_hf_config(file), architecture.name) == architecture


def test_keys_that_only_some_files_have(tmp_path):
    """Older files of Gemma 2 say nothing of caps and window, newer ones of Gemma 3 spell out pattern and local RoPE."""
    architecture = small(query_pre_attn_scalar=16, sliding_window=4096)
    values = {
        key: value for key, value in metadata(architecture).items() if "softcapping" not in key and "window" not in key
    }
    path = write(tmp_path / "old.gguf", values, stored_tensors(architecture, F32))
    assert describe_weights(path) == architecture.replace(name="old")
    more = {"gemma3.attention.sliding_window_pattern": [True] * 5 + [False, True], "gemma3.rope.freq_base_swa": 5000.0}
    found = describe_weights(save(small_gemma3(), tmp_path / "new.gguf", more=more))
    assert [layer.rope_base for layer in found.layers] == [5000.0] * 5 + [1e6, 5000.0]
    assert found.pattern[-1] == small_gemma3().pattern[-1] and found.sliding_window == 8


def test_weights_keep_no_hold_of_the_file_and_progress_ends_at_the_whole(tmp_path):
    path, calls = save(small(), tmp_path / "model.gguf"), []
    architecture = describe_weights(path)
    backbone = build_backbone(architecture, "float32")
    params = load_params(backbone, architecture, path, "float32", progress=lambda *call: calls.append(call))
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert_same(params, expected(small()))
    assert calls[-1] == (4 * architecture.parameter_count,) * 2 and len(calls) == len(params)


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    path = save(small(), tmp_path / "model.gguf")
    assert list(weight_files(path)) == list(weight_files(tmp_path)) == [path]
    assert describe_weights(path).num_layers == 3
    save(small(num_layers=2), path)
    assert describe_weights(path).num_layers == 2


def changed(**values):
    """The file with other keys; those that are None are left out. `__` stands for a full stop."""

    def change(path):
        given = {name.replace("__", "."): value for name, value in values.items()}
        kept = {key: value for key, value in (metadata(small()) | given).items() if value is not None}
        write(path, kept, stored_tensors(small(), F32))

    return change


def with_tensors(change):
    def rewrite(path):
        tensors = stored_tensors(small(), F32)
        change(tensors)
        write(path, metadata(small()), tensors)

    return rewrite


def cut(share):
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def of_type(number):
    """The file with another number as the type of the first tensor; what a later llama.cpp may write."""

    def change(path):
        reader = gguf.GGUFReader(path)
        offset = reader.tensors[0].field.parts[4].ctypes.data - reader.data.ctypes.data
        data = bytearray(path.read_bytes())
        data[offset : offset + 4] = number.to_bytes(4, "little")
        path.write_bytes(data)

    return change


def big_endian(path):
    write(path, metadata(small()), stored_tensors(small(), F32), endianess=gguf.GGUFEndian.BIG)


@pytest.mark.parametrize(
    "change, message",
    [
        (big_endian, "big-endian machines"),
        (cut(0), "is no GGUF file"),
        (lambda path: path.write_bytes(b"PK\x03\x04 something else"), "is no GGUF file"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "pointer of Git LFS"),
        *((cut(share), "damaged or cut short") for share in (0.00005, 0.001, 0.005, 0.02, 0.5, 0.999)),
        (changed(general__architecture="llama"), "architecture 'llama'; expected 'gemma' or 'gemma2' or 'gemma3'"),
        (changed(general__architecture="clip"), "no text model but the part that reads images"),
        (changed(general__type="mmproj"), "no text model but the part that reads images"),
        (changed(general__type="adapter"), "no text model but of type adapter"),
        (changed(split__count=3), "one of the 3 parts .* llama-gguf-split --merge"),
        (changed(gemma2__block_count=None), "has no number block_count"),
        (changed(gemma2__attention__value_length=8), "values of another length"),
        (changed(gemma2__rope__freq_base=5e5), "model.gguf has rope_theta = 500000.0"),
        (changed(gemma2__attention__layer_norm_rms_epsilon=1e-5), "rms_norm_eps = 9.99"),
        (of_type(99), "a tensor whose type is unknown .*99.* gguf library cannot read; install a newer"),
        (of_type(int(gguf.GGMLQuantizationType.Q8_1)), "in Q8_1, which .* gguf library cannot read"),
        (with_tensors(lambda tensors: tensors.pop("blk.1.ffn_up.weight")), "lacks the tensor blk.1.ffn_up.weight;"),
        (
            with_tensors(lambda tensors: tensors.update({"blk.0.attn_q_norm.weight": (np.ones(16, np.float32), F32)})),
            "has beyond what its sizes ask for the tensor blk.0.attn_q_norm.weight;",
        ),
        (
            with_tensors(lambda tensors: tensors.update({"output_norm.weight": (np.ones(3, np.float32), F32)})),
            r"output_norm.weight in .* has shape \(3,\), but its sizes ask for \(64,\)",
        ),
        (lambda path: path.unlink(), "there is no folder or file"),
    ],
)
def test_other_files_are_called_what_they_are(change, message, tmp_path):
    path = save(small(), tmp_path / "model.gguf", more={"general.tags": ["a", "b"], "general.numbers": [1, 2, 3]})
    change(path)
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_every_cut_is_told(tmp_path):
    """Wherever a file ends, in the metadata too, it is called damaged."""
    more = {"general.tags": ["one", "two"], "general.numbers": [1, 2, 3], "general.name": "x"}
    path = gguf_files.save(small_gemma1(), tmp_path / "model.gguf", more=more)
    whole = path.read_bytes()
    start = gguf.GGUFReader(path).data_offset
    for end in [*range(4, start, 7), start, start + 100, len(whole) - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match="damaged or cut short"):
            describe_weights(path)
