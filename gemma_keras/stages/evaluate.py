"""Perplexity and token accuracy of a model on held-out rows."""

import dataclasses
from pathlib import Path

from gemma_keras.config.schema import AdapterConfig, Config, require
from gemma_keras.config.serialization import to_dict
from gemma_keras.data.pipeline import PreparedSplit, evaluation_batches
from gemma_keras.data.prepare import prepare
from gemma_keras.evaluation.perplexity import make_evaluator
from gemma_keras.models.forward import build_backbone
from gemma_keras.models.loading import describe_weights, load_params
from gemma_keras.stages import workdir as files
from gemma_keras.stages.assets import resolve_data, resolve_tokenizer


def run(config: Config, workdir: Path) -> dict:
    """Evaluates `model.weights` on `data.validation`; returns what `<workdir>/result.json` holds."""
    require(bool(config.model.weights), "config.model.weights is empty; give the folder of the model to evaluate.")
    config = dataclasses.replace(config, adapter=AdapterConfig(method="none"))
    files.begin(workdir, to_dict(config))
    prepare(resolve_data(config.data), resolve_tokenizer(config, workdir), workdir / "data")
    figures = evaluate_weights(config, PreparedSplit.load(workdir / "data" / "valid"))
    files.write_json(workdir / "result.json", figures)
    for name, value in figures.items():
        print(f"{name:24} {value:,.4f}" if isinstance(value, float) else f"{name:24} {value:,}")
    return figures


def evaluate_weights(config: Config, split: PreparedSplit) -> dict[str, float]:
    """The figures of `perplexity.make_evaluator` for the model in `model.weights`."""
    architecture = describe_weights(config.model.weights)
    backbone = build_backbone(architecture, config.model.dtype)
    params = load_params(backbone, architecture, config.model.weights, config.model.dtype)
    rows = evaluation_batches(split, batch_rows=config.train.batch_rows)
    return make_evaluator(backbone)(params, rows)
