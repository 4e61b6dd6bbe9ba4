"""Chat and export ask for no field that their `--help` does not list."""

import dataclasses

import pytest

from gemma_keras.config.fields import SCALARS, leaves, sections
from gemma_keras.config.sections import ModelConfig, SamplingConfig
from gemma_keras.config.stages import ChatConfig, ExportStageConfig
from gemma_keras.stages import chat, export


def without_the_rest(config):
    """A configuration of whose fields only those that are read are there: to ask for another one is an error."""
    read = {(id(leaf.section), leaf.name) for leaf in leaves(config)}
    for _, section in list(sections(config)):
        for field in dataclasses.fields(section):
            if field.type in SCALARS and (id(section), field.name) not in read:
                delattr(section, field.name)
    return config


@pytest.mark.parametrize("stage", [chat, export], ids=lambda stage: stage.__name__.rpartition(".")[2])
def test_a_stage_asks_for_what_it_lists_only(stage, base, tmp_path):
    model = ModelConfig(weights=str(base), dtype="float32")
    config = {
        chat: ChatConfig(model=model, questions=("一加一等于几？",), sampling=SamplingConfig(max_new_tokens=4)),
        export: ExportStageConfig(model=model),
    }[stage]
    stage.run(without_the_rest(config), tmp_path / "work")
    assert (tmp_path / "work" / "config.json").exists()
