"""MaxText's LoRA step for gemma2_9b beside our AdaLoRA step, compiled for the same TPU slice and read by the same readers.

Both take 16 rows of 1,024 tokens on v5e:2x4, divided eight ways along the rows, in bfloat16, with adapters of rank 64 on query,
key, value and output. No TPU takes part, and nothing runs: figures are those of `gemma_keras.preflight`. Without --maxtext, ours
alone.

    python -m benchmarks.tpu_peers [--maxtext=CHECKOUT] [--python=PYTHON] [--theirs=remat_policy=full] [--json=FILE]

CHECKOUT is MaxText's repository, PYTHON an interpreter that has what it requires (its requirements for TPU), with the jax and
the libtpu of this one, lest compilers are compared.

MaxText's ahead-of-time compilation (`train_compile`) optimises `nnx.LoRAParam` alone where `lora.enable_lora` is set, but the
model that it makes has none: only supervised fine-tuning puts adapters on, on a model that has its weights. So
`model_creation_utils.create_nnx_abstract_model` is wrapped here: the function that it returns, from which the state's shapes
come, makes the model and hands it to qwix with MaxText's own provider, all without a weight; and every factor is on every
device, as `lora_utils.apply_lora_to_model` has it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from absl import app, flags

from gemma_keras.preflight import collectives, hlo, kernels
from gemma_keras.preflight.hardware import GIB
from gemma_keras.preflight.topologies import prepare_environment

MAXTEXT = flags.DEFINE_string("maxtext", "", "folder of a checkout of MaxText; empty: ours alone")
PYTHON = flags.DEFINE_string("python", sys.executable, "interpreter that has what MaxText requires")
THEIRS = flags.DEFINE_multi_string("theirs", [], "more settings of MaxText, such as remat_policy=full")
OURS = flags.DEFINE_multi_string("ours", [], "more flags of our preflight, such as --config.train.remat=matmul")
JSON = flags.DEFINE_string("json", "", "file for all figures")
COMPILE_INTO = flags.DEFINE_string("compile_into", "", "of the process that compiles MaxText's step: where it goes")

TOPOLOGY, DEVICES, ROWS, LENGTH, RANK, ALPHA = "v5e:2x4", 8, 16, 1024, 64, 32
ATTENTION = "decoder/(scanned_blocks|layers_remainder|layers)/self_attention_(local|global)/(query|key|value|out)"
PARAMETERS = 9_241_705_984  # of gemma2_9b, by which both divide their FLOPs
MEMORY = [f"{part}_size_in_bytes" for part in ("argument", "output", "alias", "temp", "generated_code")]


def ours(folder: Path) -> dict[str, Any]:
    """The figures of our step, by `scripts.preflight`."""
    settings = {
        "model.architecture": "gemma2_9b", "adapter.init_r": RANK, "adapter.targets": "query,key,value,attention_output",
        "train.batch_rows": ROWS, "data.sequence_length": LENGTH,
    }  # fmt: skip
    command = [sys.executable, "-m", "scripts.preflight", "--config=configs/stage1.py", f"--topology={TOPOLOGY}"]
    command += [f"--workdir={folder}", *(f"--config.{name}={value}" for name, value in settings.items()), *OURS.value]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report = json.loads((folder / "preflight.json").read_text())
    return {
        "matmuls_over_n": report["matmul_flops_per_token_over_n"],
        "attention_over_n": report["attention_flops_per_token_over_n"],
        "gib": report["gib_per_chip"],
        "sent": report["bytes_sent_per_step"],
        "synchronous": report["synchronous_bytes_sent_per_step"],
        "hbm": report["hbm_bytes_per_step"],
        "seconds": report["compile_seconds"],
        "what": f"AdaLoRA, {report['remat']}",
    }


def maxtext(folder: Path) -> dict[str, Any]:
    """The figures of MaxText's step, which another process compiles."""
    from gemma_keras.planning.memory import device_bytes  # it imports more than that process need have

    here = Path(__file__).parents[1]
    paths = os.pathsep.join([str(here), str(Path(MAXTEXT.value) / "src")])
    command = [PYTHON.value, "-m", "benchmarks.tpu_peers", f"--maxtext={MAXTEXT.value}", f"--compile_into={folder}"]
    command += [f"--theirs={setting}" for setting in THEIRS.value]
    subprocess.run(command, check=True, cwd=here, env=os.environ | {"PYTHONPATH": paths})
    told = json.loads((folder / "told.json").read_text())
    module = hlo.Module((folder / "program").read_bytes())
    found = collectives.find_collectives(module, DEVICES)
    return {
        "matmuls_over_n": (told["flops"] - told["attention"]) / (ROWS * LENGTH * PARAMETERS),
        "attention_over_n": told["attention"] / (ROWS * LENGTH * PARAMETERS),
        "gib": device_bytes(SimpleNamespace(**told["memory"])) / GIB,
        "sent": sum(item.sent for item in found),
        "synchronous": sum(item.sent for item in found if item.synchronous),
        "hbm": kernels.hbm_bytes(module),
        "seconds": told["seconds"],
        "what": f"LoRA, {told['remat']}",
    }


def compile_maxtext(folder: Path) -> None:
    """Writes the compiled program, and in `told.json` what only its process knows."""
    prepare_environment()
    import jax
    from flax.linen import partitioning
    from maxtext.configs import pyconfig
    from maxtext.trainers.pre_train import train, train_compile
    from maxtext.utils import maxtext_utils, model_creation_utils, sharding

    from gemma_keras.preflight.flops import matmul_flops

    base = Path(MAXTEXT.value) / "src" / "maxtext" / "configs" / "base.yml"
    more = dict(setting.split("=", 1) for setting in THEIRS.value)
    config = pyconfig.initialize(["", str(base)], **_settings() | more)
    mesh = train_compile.get_topology_mesh(config)
    abstract_model = model_creation_utils.create_nnx_abstract_model
    model_creation_utils.create_nnx_abstract_model = lambda *a, **k: _with_lora(abstract_model(*a, **k), config, mesh)
    arguments, keywords, state, _, model = train_compile.get_shaped_inputs(mesh, config)
    params, state = sharding.maybe_update_params_sharding_with_opt(config, state)
    state = sharding.build_zero1_input_state_mesh_shardings(config, state, params)
    step, taken, given, _, donated = maxtext_utils.get_functional_train_with_signature(
        train.train_step, sharding.get_input_data_sharding(config, mesh), state, model, config, params
    )
    with jax.set_mesh(mesh), mesh, partitioning.axis_rules(config.logical_axis_rules):
        jitted = jax.jit(step, in_shardings=taken, out_shardings=given, donate_argnums=donated)
        trace = jitted.trace(*arguments, **keywords)
        flops = matmul_flops(trace.jaxpr)
        started = time.perf_counter()
        compiled = trace.lower().compile()
    memory = compiled.memory_analysis()
    told = {
        "flops": flops.total,
        "attention": flops.attention,
        "remat": config.remat_policy,
        "seconds": time.perf_counter() - started,
        "memory": {name: getattr(memory, name) for name in MEMORY},
    }
    (folder / "program").write_bytes(hlo.message_of(compiled))
    (folder / "told.json").write_text(json.dumps(told))


def _settings() -> dict[str, Any]:
    """What differs from MaxText's base.yml; a frozen base is kept in bfloat16, as ours is."""
    return {
        "run_name": "peer", "model_name": "gemma2-9b", "compile_topology": "v5e-8", "compile_topology_num_slices": 1,
        "per_device_batch_size": ROWS // DEVICES, "max_target_length": LENGTH, "ici_fsdp_parallelism": DEVICES,
        "dtype": "bfloat16", "weight_dtype": "bfloat16", "attention": "flash", "remat_policy": "minimal_with_context",
        "enable_checkpointing": False, "dataset_type": "synthetic", "skip_jax_distributed_system": True,
        "lora": {"enable_lora": True, "lora_rank": RANK, "lora_alpha": ALPHA, "lora_module_path": ATTENTION},
    }  # fmt: skip


def _with_lora(made: tuple[Any, Any], config: Any, mesh: Any) -> tuple[Any, Any]:
    """What `create_nnx_abstract_model` gives, the maker of models and a model, with adapters on both."""
    import qwix
    from flax import nnx
    from maxtext.utils import lora_utils

    make, _ = made
    tokens, positions = lora_utils._prepare_dummy_inputs(mesh, seq_len=LENGTH)

    def make_with_lora() -> Any:
        plain = make()
        model = qwix.apply_lora_to_model(
            plain, lora_utils._build_lora_provider(config), decoder_input_tokens=tokens, decoder_positions=positions,
            rngs=plain.decoder.rngs,
        )  # fmt: skip
        for _, variable in nnx.iter_graph(model):
            if isinstance(variable, nnx.LoRAParam):
                variable.set_metadata(out_sharding=None)
        return model

    return make_with_lora, nnx.eval_shape(make_with_lora)


def main(_: list[str]) -> None:
    if COMPILE_INTO.value:
        compile_maxtext(Path(COMPILE_INTO.value))
        return
    contestants = {"gemma_keras": ours} | ({"MaxText": maxtext} if MAXTEXT.value else {})
    figures = {}
    print("contestant   matmuls a token + attention    GiB   sent GB  synchronous  HBM GB  compiled in")
    for name, read in contestants.items():
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = it = read(Path(folder))
        print(
            f"{name:<12} {it['matmuls_over_n']:.2f} + {it['attention_over_n']:.2f} N {it['gib']:16.2f} {it['sent'] / 1e9:9.1f} "
            f"{it['synchronous'] / 1e9:12.1f} {it['hbm'] / 1e9:7.0f} {it['seconds']:8.0f} s   {it['what']}",
            flush=True,
        )
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
