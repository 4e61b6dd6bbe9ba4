"""Data preparation as a stage of its own, so that it can run before, or far from, the accelerator."""

from pathlib import Path

from gemma_keras.config.serialization import to_dict
from gemma_keras.config.stages import PrepareConfig
from gemma_keras.data.prepare import prepare
from gemma_keras.stages.running import workdir as files
from gemma_keras.stages.running.assets import resolve_data, resolve_template, resolve_tokenizer, with_spans


def run(config: PrepareConfig, workdir: Path) -> dict:
    """Leaves `<workdir>/data` as a training stage with this configuration and workdir would; returns its report.

    With `data.system_prompts.dry_run` it only prints, and returns, what the dynamic system prompts would take.
    """
    files.begin(workdir, to_dict(config))
    template = with_spans(resolve_template(config))
    data = resolve_data(config.data, template, dry_run=True)
    report = prepare(data, resolve_tokenizer(config, workdir), workdir / "data")
    if config.data.system_prompts.dry_run:
        print(", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in report.items()))
    return report
