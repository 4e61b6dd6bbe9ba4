"""Runs in this process: what they write, and how they fail."""

import dataclasses
import json

import pytest

from configs import quickstart
from gemma_keras.config.errors import UserError
from gemma_keras.config.schema import Config
from gemma_keras.stages import chat, evaluate, pipeline, sft


@pytest.fixture(autouse=True)
def builtin_cache(cache, monkeypatch):
    monkeypatch.setenv("GEMMA_KERAS_CACHE", str(cache))


def change(config: Config, **sections: dict) -> Config:
    """The configuration with some fields of some sections changed."""
    return dataclasses.replace(
        config, **{name: dataclasses.replace(getattr(config, name), **fields) for name, fields in sections.items()}
    )


def short(config: Config, steps: int, **train) -> Config:
    limited = tuple(dataclasses.replace(corpus, limit=150) for corpus in config.data.corpora)
    return change(
        config,
        data={"corpora": limited, "sequence_length": 128},
        train={"steps": steps, "log_every": 5, "batch_rows": 4, **train},
    )


def test_pipeline_from_data_to_verified_export(tmp_path, capsys):
    config = quickstart.get_config()
    config = dataclasses.replace(config, pretrain=short(config.pretrain, 10), sft=short(config.sft, 20))
    result = pipeline.run(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert result["rank_initial"] == config.sft.adapter.init_r and result["rank_final"] == config.sft.adapter.target_r
    assert result["verification"]["verified"] is True, result["verification"]
    assert len(result["samples"]) == 3 and result["base_perplexity"] > 1 and result["tuned_perplexity"] > 1
    assert result["tuned"]["perplexity_content"] == pytest.approx(
        json.loads((tmp_path / "run/sft/result.json").read_text())["valid"]["perplexity_content"], rel=1e-3
    )  # the exported model is the tuned one
    assert "average rank, first and last" in capsys.readouterr().out
    for name in ("config.json", "metrics.jsonl", "plots/loss.png", "plots/ranks.png", "adapter/adapter.safetensors"):
        assert (tmp_path / "run" / "sft" / name).is_file(), name
    again = pipeline.run(config, tmp_path / "run")  # finished stages are not run again
    assert again["tuned_perplexity"] == result["tuned_perplexity"]


@pytest.fixture
def config(base) -> Config:
    return change(short(quickstart.get_config().sft, 12, save_every=2), model={"weights": str(base)})


def test_a_loss_that_is_not_finite_is_told_with_its_rows(config, tmp_path):
    wild = change(config, optim={"learning_rate": 1e30, "warmup": 6.0, "clip_norm": 0.0})
    with pytest.raises(UserError, match=r"not finite at step \d+, on rows .*last good checkpoint is step \d+"):
        sft.run(wild, tmp_path / "run")
    detail = json.loads((tmp_path / "run" / "non_finite.json").read_text())
    assert detail["rows"] and all("/" in row for row in detail["rows"])
    saved = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
    assert saved and max(saved) < detail["step"]


def test_fine_tuning_without_a_base_is_told(tmp_path):
    with pytest.raises(UserError, match="model.weights is empty"):
        sft.run(quickstart.get_config().sft, tmp_path / "run")


def test_lora_and_bfloat16(config, tmp_path):
    lora = change(config, adapter={"method": "lora", "init_r": 4}, model={"dtype": "bfloat16"}, train={"steps": 3})
    result = sft.run(lora, tmp_path / "run")
    assert result["steps"] == 3 and "rank_final" not in result
    assert result["valid"]["perplexity_content"] > 1


def test_evaluate_and_chat(config, tmp_path, capsys):
    figures = evaluate.run(config, tmp_path / "evaluate")
    assert figures["tokens_all"] > figures["tokens_response"] > figures["tokens_content"] > 0
    asked = change(config, sampling={"max_new_tokens": 4})
    chat.run(asked, tmp_path / "chat")
    assert config.questions[0] in capsys.readouterr().out
