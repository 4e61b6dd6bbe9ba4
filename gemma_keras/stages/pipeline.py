"""The whole flow in one process: base model, fine-tuning, evaluation, sample answers, export, verification."""

import dataclasses
import time
from pathlib import Path
from typing import TypeVar

from gemma_keras.config.errors import UserError, require
from gemma_keras.config.serialization import to_dict
from gemma_keras.config.stages import PipelineConfig, PipelineSftConfig, TrainingConfig
from gemma_keras.config.writing import write_whole
from gemma_keras.data.pipeline import PreparedSplit
from gemma_keras.evaluation.tasks.perplexity import evaluate_model
from gemma_keras.inference.chat import ChatModel
from gemma_keras.inference.language_model import Reply
from gemma_keras.stages import training
from gemma_keras.stages.running import workdir as files
from gemma_keras.stages.running.assets import load_chat_model
from gemma_keras.stages.verify import verify_export

T = TypeVar("T", bound=TrainingConfig)


def run(config: PipelineConfig, workdir: Path) -> dict:
    """Runs every part that has not finished yet; returns what `<workdir>/result.json` holds and prints it as a table.

    Where `config.sft.model.weights` names a base model, none is pretrained. Answers before and after stand in
    `<workdir>/answers.md`, too.
    """
    method = config.sft.adapter.method
    require(
        method == "adalora", f"config.sft.adapter.method is {method!r}, but the pipeline shows AdaLoRA: use train_sft."
    )
    started = time.perf_counter()
    files.begin(workdir, to_dict(config))
    result = files.read_json(workdir / "result.json")
    # Earlier versions asked the tuned model alone.
    if (
        not result
        or any("base_answer" not in sample for sample in result["samples"])
        or result["verification"].get("verified") is False
    ):
        tuned = _rooted(config.sft, config)
        if not tuned.model.weights:
            pretrained = training.run(_rooted(config.pretrain, config), workdir / "pretrain")
            tuned = dataclasses.replace(tuned, model=dataclasses.replace(tuned.model, weights=pretrained["export_dir"]))
        result = _summary(tuned, training.run(tuned, workdir / "sft"), workdir)
        result["seconds"] = time.perf_counter() - started
        write_whole(workdir / "answers.md", _answers(result["samples"]).encode())
        files.write_json(workdir / "result.json", result)
    _print_table(result)
    require(
        result["verification"].get("verified") is not False,
        f"{result['export_dir']} is not in transformers what it is here ({result['verification']}); please report this.",
    )
    return result


def _rooted(stage: T, config: PipelineConfig) -> T:
    """A stage's configuration with the folder of corpora that is given for all."""
    data = dataclasses.replace(stage.data, root=config.data.root or stage.data.root)
    return dataclasses.replace(stage, data=data)


def _summary(tuned: PipelineSftConfig, sft_result: dict, workdir: Path) -> dict:
    """Perplexities of the base and of the exported model on the same rows, samples, verification."""
    split = PreparedSplit.load(workdir / "sft" / "data" / "valid")
    conversations = [[{"role": "user", "content": question}] for question in tuned.questions]

    def examined(model: ChatModel) -> tuple[dict[str, float], list[Reply | UserError]]:
        return evaluate_model(model, split, tuned.train.batch_rows), model.answer_each(conversations, tuned.sampling)

    before, first_answers = examined(_load_float32(tuned, tuned.model.weights, workdir))  # which is let go
    model = _load_float32(tuned, sft_result["export_dir"], workdir)
    after, answers = examined(model)
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
        "samples": list(map(_sample, tuned.questions, first_answers, answers)),
        "verification": verify_export(Path(sft_result["export_dir"]), model, tuned.questions),
    }


def _sample(question: str, before: Reply | UserError, after: Reply | UserError) -> dict:
    """A question that could not be asked has the reason in brackets for an answer, and costs the run nothing else."""
    base, answer = (f"[{given}]" if isinstance(given, UserError) else given.text for given in (before, after))
    ended = not isinstance(after, UserError) and after.ended
    return {"question": question, "base_answer": base, "answer": answer, "ended": ended}


def _answers(samples: list[dict]) -> str:
    parts = [f"## {s['question']}\n\nBefore:\n\n{s['base_answer']}\n\nAfter:\n\n{s['answer']}\n" for s in samples]
    return "\n".join(["# Answers before and after tuning\n", *parts])


def _load_float32(config: PipelineSftConfig, weights: str, workdir: Path) -> ChatModel:
    model = dataclasses.replace(config.model, weights=weights, dtype="float32")
    return load_chat_model(dataclasses.replace(config, model=model), workdir)


def _print_table(result: dict) -> None:
    samples = result["samples"]
    for sample in samples:
        print(f"\n> {sample['question']}\n\nbefore: {sample['base_answer']}\n\nafter: {sample['answer']}")
    checked = result["verification"]
    verdict = {True: "yes", False: "NO", None: "not compared"}[checked.get("verified")]
    rows = [
        ("perplexity of the base (response content, held-out rows)", f"{result['base_perplexity']:.3f}"),
        ("perplexity after tuning", f"{result['tuned_perplexity']:.3f} ({100 * result['perplexity_change']:+.1f} %)"),
        (
            "token accuracy of the content, base and tuned",
            f"{result['base']['accuracy_content']:.3f}, {result['tuned']['accuracy_content']:.3f}",
        ),
        ("average rank, first and last", f"{result['rank_initial']}, {result['rank_final']:g}"),
        ("tokens that are not padding", f"{100 * result['useful_token_share']:.2f} %"),
        ("sample answers that ended by themselves", f"{sum(s['ended'] for s in samples)} of {len(samples)}"),
        (f"equal in transformers {checked['transformers'] or ''}".rstrip(), verdict),
        ("exported model", result["export_dir"]),
        ("seconds", f"{result['seconds']:.0f}"),
    ]
    width = max(len(name) for name, _ in rows)
    print("\n" + "\n".join(f"{name:<{width}}  {value}" for name, value in rows))
