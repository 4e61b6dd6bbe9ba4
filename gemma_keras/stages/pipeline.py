"""The whole flow in one process: base model, fine-tuning, evaluation, sample answers, export, verification."""

import dataclasses
import time
from pathlib import Path

from gemma_keras.config.schema import Config, PipelineConfig
from gemma_keras.config.serialization import to_dict
from gemma_keras.data.pipeline import PreparedSplit
from gemma_keras.stages import pretrain, sft
from gemma_keras.stages import workdir as files
from gemma_keras.stages.assets import load_chat_model
from gemma_keras.stages.evaluate import evaluate_weights
from gemma_keras.stages.verify import verify_export


def run(config: PipelineConfig, workdir: Path) -> dict:
    """Runs every part that has not finished yet; returns what `<workdir>/result.json` holds and prints it as a table."""
    started = time.perf_counter()
    files.begin(workdir, to_dict(config))
    base = _stage(config.pretrain, config)
    tuned = _stage(config.sft, config)
    pretrained = pretrain.run(base, workdir / "pretrain")
    tuned = dataclasses.replace(tuned, model=dataclasses.replace(tuned.model, weights=pretrained["export_dir"]))
    result = _summary(tuned, sft.run(tuned, workdir / "sft"), workdir)
    result["seconds"] = time.perf_counter() - started
    files.write_json(workdir / "result.json", result)
    _print_table(result)
    return result


def _stage(stage: Config, config: PipelineConfig) -> Config:
    root = config.data.root or stage.data.root
    return dataclasses.replace(stage, data=dataclasses.replace(stage.data, root=root))


def _summary(tuned: Config, sft_result: dict, workdir: Path) -> dict:
    """Perplexities of the base and of the exported model on the same rows, samples, verification."""
    split = PreparedSplit.load(workdir / "sft" / "data" / "valid")
    exported = _float32(tuned, sft_result["export_dir"])
    before, after = (evaluate_weights(c, split) for c in (_float32(tuned, tuned.model.weights), exported))
    model = load_chat_model(exported, workdir)
    conversations = [[{"role": "user", "content": question}] for question in tuned.questions]
    answers = model.reply_batch(conversations, tuned.sampling)
    return {
        "base_perplexity": before["perplexity_content"],
        "tuned_perplexity": after["perplexity_content"],
        "perplexity_change": after["perplexity_content"] / before["perplexity_content"] - 1,
        "rank_initial": sft_result["rank_initial"],
        "rank_final": sft_result["rank_final"],
        "useful_token_share": sft_result["useful_token_share"],
        "export_dir": sft_result["export_dir"],
        "base": before,
        "tuned": after,
        "samples": [{"question": q, "answer": a} for q, a in zip(tuned.questions, answers, strict=True)],
        "verification": verify_export(Path(sft_result["export_dir"]), model, tuned.questions),
    }


def _float32(config: Config, weights: str) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, weights=weights, dtype="float32"))


def _print_table(result: dict) -> None:
    for sample in result["samples"]:
        print(f"\n> {sample['question']}\n{sample['answer']}")
    checked = result["verification"]
    verdict = {True: "yes", False: "NO", None: "not compared"}[checked.get("verified")]
    rows = [
        ("perplexity of the base (response content, held-out rows)", f"{result['base_perplexity']:.3f}"),
        ("perplexity after tuning", f"{result['tuned_perplexity']:.3f} ({100 * result['perplexity_change']:+.1f} %)"),
        (
            "token accuracy, base and tuned",
            f"{result['base']['accuracy_content']:.3f}, {result['tuned']['accuracy_content']:.3f}",
        ),
        ("average rank, first and last", f"{result['rank_initial']}, {result['rank_final']:g}"),
        ("tokens that are not padding", f"{100 * result['useful_token_share']:.2f} %"),
        (f"equal in transformers {checked['transformers'] or ''}".rstrip(), verdict),
        ("exported model", result["export_dir"]),
        ("seconds", f"{result['seconds']:.0f}"),
    ]
    width = max(len(name) for name, _ in rows)
    print("\n" + "\n".join(f"{name:<{width}}  {value}" for name, value in rows))
