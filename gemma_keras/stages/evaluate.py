"""Perplexity and token accuracy of a model on held-out rows."""

from pathlib import Path

from gemma_keras.config.errors import require
from gemma_keras.config.serialization import to_dict
from gemma_keras.config.stages import EvaluateConfig
from gemma_keras.data.pipeline import PreparedSplit
from gemma_keras.data.prepare import prepare
from gemma_keras.evaluation.tasks.perplexity import evaluate_model
from gemma_keras.stages.running import workdir as files
from gemma_keras.stages.running.assets import load_chat_model, resolve_data, resolve_template, with_spans


def run(config: EvaluateConfig, workdir: Path) -> dict:
    """Evaluates `model.weights` on `data.validation`; returns what `<workdir>/result.json` holds."""
    require(
        bool(config.model.weights),
        "config.model.weights is empty; give the folder or GGUF file of the model to evaluate.",
    )
    files.begin(workdir, to_dict(config))
    template = with_spans(resolve_template(config, lambda line: None))  # `load_chat_model` tells
    data = resolve_data(config.data, template)
    model = load_chat_model(config, workdir)
    prepare(data, model.tokenizer, workdir / "data")
    figures = evaluate_model(model, PreparedSplit.load(workdir / "data" / "valid"), config.train.batch_rows)
    files.write_json(workdir / "result.json", figures)
    for name, value in figures.items():
        print(f"{name:24} {value:,.4f}" if isinstance(value, float) else f"{name:24} {value:,}")
    return figures
