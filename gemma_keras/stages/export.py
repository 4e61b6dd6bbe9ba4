"""Export as a stage: the weights that a run ended with, or any readable weights, as a Hugging Face folder."""

from pathlib import Path

import jax

from gemma_keras.config.errors import require
from gemma_keras.config.serialization import to_dict
from gemma_keras.config.stages import ExportStageConfig
from gemma_keras.data.progress import print_progress
from gemma_keras.export.huggingface import export_hf
from gemma_keras.models.forward import build_backbone
from gemma_keras.stages.running import workdir as files
from gemma_keras.stages.running.assets import (
    ByteProgress,
    load_weights,
    resolve_architecture,
    resolve_template,
    resolve_tokenizer,
)


def run(config: ExportStageConfig, workdir: Path) -> dict:
    """Writes `model.weights` (Hugging Face folder, Keras preset or GGUF file) to `<workdir>/export`; returns `{"export_dir"}`."""
    require(
        bool(config.model.weights),
        "config.model.weights is empty; give the folder or GGUF file of the model to export.",
    )
    files.begin(workdir, to_dict(config))
    tokenizer = resolve_tokenizer(config, workdir)
    architecture = resolve_architecture(config, tokenizer)
    template = resolve_template(config)
    backbone = build_backbone(architecture, "float32")
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    params = load_weights(backbone, config.model.weights, config.export.dtype, lambda path, shape: host)
    export_hf(
        params, architecture, tokenizer, workdir / "export", dtype=config.export.dtype,
        shard_megabytes=config.export.shard_megabytes, template=template,
        progress=ByteProgress("exporting"),
    )  # fmt: skip
    result = {"export_dir": str(workdir / "export")}
    print_progress(f"exported to {result['export_dir']}")
    files.write_json(workdir / "result.json", result)
    return result
