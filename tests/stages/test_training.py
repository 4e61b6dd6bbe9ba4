"""Runs in this process: what they write, and how they fail."""

import dataclasses
import json
import shutil
import signal

import pytest

from configs import quickstart
from gemma_keras.config.errors import UserError
from gemma_keras.config.loading import taken
from gemma_keras.config.stages import EvaluateConfig, TrainingConfig
from gemma_keras.stages import chat, evaluate, pipeline, training
from gemma_keras.text.jinja_templates import write_jinja
from gemma_keras.text.templates import TEMPLATES
from gemma_keras.training import hooks


def change(config: TrainingConfig, **sections: dict) -> TrainingConfig:
    """The configuration with some fields of some sections changed."""
    return dataclasses.replace(
        config, **{name: dataclasses.replace(getattr(config, name), **fields) for name, fields in sections.items()}
    )


def short(config: TrainingConfig, steps: int, **train) -> TrainingConfig:
    limited = tuple(dataclasses.replace(corpus, limit=150) for corpus in config.data.corpora)
    return change(
        config,
        data={"corpora": limited, "sequence_length": 128},
        train={"steps": steps, "log_every": 5, "batch_rows": 4, **train},
    )


def test_pipeline_from_data_to_verified_export(tmp_path, capsys):
    config = quickstart.get_config()
    questions = (*config.sft.questions, "很长" * 3000)  # the last one is too long
    tuned = dataclasses.replace(short(config.sft, 20), questions=questions)
    pretrain = change(short(config.pretrain, 10), data={"template": "gemma"})
    config = dataclasses.replace(config, pretrain=pretrain, sft=tuned)
    result = pipeline.run(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert result["rank_initial"] == config.sft.adapter.init_r and result["rank_final"] == pytest.approx(
        config.sft.adapter.target_r, rel=0.01
    )
    assert result["verification"]["verified"] is True, result["verification"]
    assert [sample["answer"].startswith("[prompt 3 has ") for sample in result["samples"]] == [False] * 3 + [True]
    assert result["base_perplexity"] > 1 and result["tuned_perplexity"] > 1
    assert result["tuned"]["perplexity_content"] == pytest.approx(
        json.loads((tmp_path / "run/sft/result.json").read_text())["valid"]["perplexity_content"], rel=1e-3
    )  # the exported model is the tuned one
    handed_on = [(tmp_path / "run" / name / "export/chat_template.jinja").read_text() for name in ("pretrain", "sft")]
    assert handed_on == [write_jinja(TEMPLATES["gemma"])] * 2
    assert "average rank, first and last" in capsys.readouterr().out
    for name in ("config.json", "metrics.jsonl", "plots/loss.png", "plots/ranks.png", "adapter/adapter.safetensors"):
        assert (tmp_path / "run" / "sft" / name).is_file(), name
    answers = (tmp_path / "run" / "answers.md").read_bytes().decode()
    for sample in result["samples"]:
        assert all(text in answers for text in sample.values() if isinstance(text, str)), sample
    assert pipeline.run(config, tmp_path / "run") == result  # which is not run again


@pytest.mark.long
def test_a_pipeline_with_a_base_model_pretrains_none(base, tmp_path):
    tuned = short(quickstart.get_config().sft, 4, log_every=2)
    tuned = change(tuned, model={"weights": str(base)}, sampling={"max_new_tokens": 4})
    result = pipeline.run(dataclasses.replace(quickstart.get_config(), sft=tuned), tmp_path / "run")
    assert result["verification"]["verified"] is True and not (tmp_path / "run" / "pretrain").exists()
    inputs = json.loads((tmp_path / "run" / "sft" / "inputs.json").read_text())
    assert "config.json" in inputs["weights"]
    # An earlier version asked the tuned model alone: what it left is examined again.
    old = result | {
        "samples": [{k: v for k, v in sample.items() if k != "base_answer"} for sample in result["samples"]]
    }
    (tmp_path / "run" / "result.json").write_text(json.dumps(old))
    again = pipeline.run(dataclasses.replace(quickstart.get_config(), sft=tuned), tmp_path / "run")
    assert again["samples"] == result["samples"]


@pytest.fixture
def config(base) -> TrainingConfig:
    return change(short(quickstart.get_config().sft, 12, save_every=2), model={"weights": str(base)})


@pytest.mark.long
def test_a_loss_that_is_not_finite_is_told_with_its_rows(config, tmp_path):
    wild = change(config, optim={"learning_rate": 1e30, "warmup": 6.0, "clip_norm": 0.0})
    with pytest.raises(UserError, match=r"not finite at step \d+, on rows .*last good checkpoint is step \d+"):
        training.run(wild, tmp_path / "run")
    detail = json.loads((tmp_path / "run" / "non_finite.json").read_text())
    assert detail["rows"] and all("/" in row for row in detail["rows"])
    saved = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
    assert saved and max(saved) < detail["step"]


def test_fine_tuning_without_a_base_is_told(tmp_path):
    with pytest.raises(UserError, match="model.weights is empty"):
        training.run(quickstart.get_config().sft, tmp_path / "run")


@pytest.mark.long
def test_lora_and_bfloat16(config, tmp_path):
    lora = change(config, adapter={"method": "lora", "init_r": 4}, model={"dtype": "bfloat16"}, train={"steps": 3})
    result = training.run(lora, tmp_path / "run")
    assert result["steps"] == 3 and "rank_final" not in result
    assert result["valid"]["perplexity_content"] > 1


def test_evaluate_and_chat(config, tmp_path, capsys):
    figures = evaluate.run(taken(config, EvaluateConfig), tmp_path / "evaluate")
    assert figures["tokens_all"] > figures["tokens_response"] > figures["tokens_content"] > 0
    asked = change(config, sampling={"max_new_tokens": 4})
    chat.run(asked, tmp_path / "chat")
    assert config.questions[0] in capsys.readouterr().out


def test_the_pipeline_shows_adalora_only(tmp_path):
    config = quickstart.get_config()
    lora = dataclasses.replace(config, sft=change(config.sft, adapter={"method": "lora"}))
    with pytest.raises(UserError, match="pipeline shows AdaLoRA"):
        pipeline.run(lora, tmp_path / "run")


@pytest.mark.long
def test_training_without_validation_rows(config, tmp_path):
    result = training.run(change(config, data={"validation": ()}, train={"steps": 8}), tmp_path / "run")
    assert result["steps"] == 8 and "valid" not in result


def test_evaluation_without_rows_is_told(config, tmp_path):
    with pytest.raises(UserError, match="no rows to evaluate"):
        evaluate.run(taken(change(config, data={"validation": ()}), EvaluateConfig), tmp_path / "run")


def test_evaluation_with_a_tokenizer_of_another_size_is_told(config, tmp_path):
    from gemma_keras import builtin
    from gemma_keras.builtin.tokenizer import train_tokenizer

    texts = [path.read_text(encoding="utf-8") for path in sorted((builtin.CORPUS / "zh_wiki").iterdir())]
    train_tokenizer(texts, 1024, tmp_path / "small.model")
    with pytest.raises(UserError, match="has 1024 pieces"):
        evaluate.run(
            taken(change(config, tokenizer={"path": str(tmp_path / "small.model")}), EvaluateConfig), tmp_path / "run"
        )


def test_a_missing_weights_folder_is_told_and_may_be_mended(config, tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        evaluate.run(taken(change(config, model={"weights": str(tmp_path / "none")}), EvaluateConfig), tmp_path / "run")
    assert evaluate.run(taken(config, EvaluateConfig), tmp_path / "run")["tokens_all"] > 0


def test_a_warm_up_longer_than_the_run_is_told(config, tmp_path):
    endless = change(config, train={"steps": 0, "epochs": 0.5}, optim={"warmup": 1000.0})
    with pytest.raises(UserError, match="optim.warmup is 1000"):
        training.run(endless, tmp_path / "run")


@pytest.mark.long
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_serves(config, tmp_path):
    run = tmp_path / "run"
    training.run(config, run)
    (run / "result.json").unlink()
    for path in (run / "checkpoints" / "12").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="damaged or does not fit"):
        training.run(config, run)
    shutil.rmtree(run / "checkpoints" / "12")
    assert training.run(config, run)["steps"] == 12


def test_a_stop_at_the_last_step_is_obeyed(config, tmp_path, monkeypatch):
    def stop_at_12(self, step, state, metrics, batch):
        if step == 12:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(hooks.NonFiniteGuard, "after_step", stop_at_12)
        training.run(config, tmp_path / "run")
    assert caught.value.code == 128 + signal.SIGTERM and not (tmp_path / "run" / "result.json").exists()
    assert training.run(config, tmp_path / "run")["steps"] == 12


def test_rows_longer_than_the_context_are_told(config, tmp_path):
    with pytest.raises(UserError, match="above the 2048 positions"):
        training.run(change(config, data={"sequence_length": 4096}), tmp_path / "run")
