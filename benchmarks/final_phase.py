"""AdaLoRA's final phase: ours (pruned triplets leave the penalty and are frozen) against PEFT's (zeroed every step).

Both runs start from the same base, data, seeds and configuration (configs/quickstart.py, stage `sft`), one after the
other; they differ in `adapter.peft_compatible` alone.

    python -m benchmarks.final_phase --weights=runs/quickstart/pretrain/export [--root=CORPORA] [--steps=240]
"""

import dataclasses
import tempfile
from pathlib import Path

from absl import app, flags

from gemma_keras import runtime

WEIGHTS = flags.DEFINE_string("weights", None, "base model to tune (a Hugging Face folder)", required=True)
ROOT = flags.DEFINE_string("root", "", "folder of the corpora; empty: the builtin corpus")
STEPS = flags.DEFINE_integer("steps", 240, "optimizer steps of each run")


def main(argv: list[str]) -> None:
    runtime.configure()
    from configs.quickstart import get_config
    from gemma_keras.stages import training
    from gemma_keras.stages.running.workdir import JsonLines

    base = get_config().sft
    base = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, weights=WEIGHTS.value),
        data=dataclasses.replace(base.data, root=ROOT.value),
        train=dataclasses.replace(base.train, steps=STEPS.value, log_every=1),
    )
    rows = []
    for compatible in (True, False):
        config = dataclasses.replace(base, adapter=dataclasses.replace(base.adapter, peft_compatible=compatible))
        with tempfile.TemporaryDirectory() as folder:
            result = training.run(config, Path(folder))
            lines = JsonLines(Path(folder) / "metrics.jsonl").read()
        last = lines[-max(1, STEPS.value // 20) :]
        mean = {name: sum(line[name] for line in last) / len(last) for name in ("loss", "penalty", "grad_norm")}
        rows.append(
            ("PEFT's" if compatible else "ours", result["valid"]["perplexity_content"], mean, result["rank_final"])
        )
    print(f"{STEPS.value} steps from {WEIGHTS.value}, data {ROOT.value or 'builtin'}, {runtime.device_summary()}")
    print("| final phase | validation perplexity (content) | loss | penalty | gradient norm | average rank |")
    print("|---|---|---|---|---|---|")
    for name, perplexity, mean, rank in rows:
        figures = " | ".join(f"{mean[key]:.4f}" for key in ("loss", "penalty", "grad_norm"))
        print(f"| {name} | {perplexity:.2f} | {figures} | {rank:g} |")
    print(f"(loss, penalty and gradient norm: means of the last {max(1, STEPS.value // 20)} steps)")


if __name__ == "__main__":
    app.run(main)
