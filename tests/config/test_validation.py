import dataclasses

import pytest
from annotated_types import Interval

from gemma_keras.config import sections
from gemma_keras.config.errors import UserError
from gemma_keras.config.fields import STRINGS, leaves, validate
from gemma_keras.config.stages import PreflightConfig
from gemma_keras.stages.running.launch import NAMES
from tests.config.everything import Config, CorpusConfig, DataConfig, PipelineConfig


def with_values(**values) -> Config:
    """A fine-tuning configuration with `section__field=value` set."""
    corpora = (CorpusConfig(name="belle", share=0.4), CorpusConfig(name="alpaca_gpt4_zh", share=0.6))
    config = Config(data=DataConfig(corpora=corpora))
    config.adapter.method = "adalora"
    found = {leaf.path.replace(".", "__"): leaf for leaf in leaves(config)}
    for name, value in values.items():
        found[name].value = value
    return config


def test_defaults_are_valid():
    validate(Config())
    validate(PipelineConfig())
    validate(with_values())


SECTIONS = [kind for kind in vars(sections).values() if isinstance(kind, type) and kind.__module__ == sections.__name__]


def test_every_number_has_a_range():
    fields = [field for kind in (*SECTIONS, PreflightConfig) for field in dataclasses.fields(kind)]
    numbers = {field.name: field.metadata["within"] for field in fields if field.type in (int, float)}
    assert "learning_rate" in numbers and all(isinstance(within, Interval) for within in numbers.values())


def test_choices_are_text_fields_and_contain_their_defaults():
    listed = {(kind, f.name): f.metadata.get("within") for kind in SECTIONS for f in dataclasses.fields(kind)}
    for (section, name), names in [*listed.items(), *NAMES.items()]:
        field = section.__dataclass_fields__[name]
        if isinstance(names, tuple) and names:
            assert field.type in (str, STRINGS)
            assert set(field.default if field.type == STRINGS else [field.default]) <= set(names)


def test_lists_of_text_are_flags_too():
    lists = {leaf.path for leaf in leaves(Config()) if leaf.kind == STRINGS}
    assert lists == {
        "questions",
        "adapter.targets",
        "data.earlier",
        "data.cleaning.contamination",
        "sampling.stop",
        "solver.pipeline",
    }


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"optim__learning_rate": 0.0}, "config.optim.learning_rate is 0.0: Input should be greater than 0"),
        ({"optim__learning_rate": float("nan")}, "config.optim.learning_rate is nan"),
        ({"optim__learning_rate": float("inf")}, "config.optim.learning_rate is inf"),
        ({"train__steps": -1}, "config.train.steps is -1: Input should be greater than or equal to 0"),
        ({"train__batch_rows": 0}, "config.train.batch_rows is 0"),
        ({"train__batch_rows": 6, "train__accumulation": 4}, "config.train.accumulation (4) does not divide"),
        ({"model__dtype": "float16"}, "config.model.dtype is 'float16': Input should be 'bfloat16' or 'float32'"),
        ({"model__architecture": "gemma3"}, "gemma2_tiny"),
        ({"adapter__method": "dora"}, "should be 'none', 'lora' or 'adalora'"),
        ({"data__loss_on": "prompt"}, "should be 'response' or 'all'"),
        ({"optim__schedule": "linear"}, "should be 'cosine' or 'constant'"),
        ({"data__corpora__0__share": 0.5}, "sum to 1.1, but shares must sum to 1"),
        ({"data__corpora__0__share": 0.0}, "config.data.corpora.0.share is 0 while other corpora have a share"),
        ({"data__corpora__0__share": 1.4}, "config.data.corpora.0.share is 1.4"),
        ({"data__corpora__0__name": ""}, "config.data.corpora.0.name is empty"),
        ({"data__corpora__0__path": "a", "data__corpora__0__hub": "b/c"}, "drop one"),
        ({"data__system_prompts__fixed": 0.5}, "the shares of config.data.system_prompts sum to 1.5"),
        ({"data__too_small": "shrink"}, "should be 'error', 'repeat' or 'less'"),
        ({"data__cleaning__near_duplicates": 1.5}, "config.data.cleaning.near_duplicates is 1.5"),
        ({"adapter__target_r": 65}, "config.adapter.target_r is 65, more than config.adapter.init_r (64)"),
        ({"adapter__tinit": 0.5, "adapter__tfinal": 0.5}, "make their sum less than 1"),
        ({"adapter__tinit": 1.5}, "config.adapter.tinit is 1.5, but from 1 on it counts steps"),
        ({"adapter__tinit": 60.0, "adapter__tfinal": 40.0, "train__steps": 100}, "make 100 steps"),
        ({"adapter__tinit": 90.0, "adapter__tfinal": 0.2, "train__steps": 100}, "make 110 steps"),
        (
            {"adapter__tinit": 0.0, "adapter__tfinal": 99.0, "train__steps": 100},
            "tfinal is 99 of 100 steps, so that ranks would be fixed before any was scored",
        ),
        ({"adapter__tinit": 0.1, "adapter__tfinal": 0.3, "train__steps": 1}, "tfinal is 0 of 1 steps"),
        ({"adapter__targets": ()}, "config.adapter.targets is empty"),
        ({"adapter__targets": ("query", "q_proj")}, "config.adapter.targets.1 is 'q_proj': Input should be 'query'"),
        ({"adapter__targets": ("query", "query")}, "repeats a name"),
        ({"optim__warmup": 10.0, "train__steps": 10}, "config.optim.warmup is 10 steps"),
        ({"optim__warmup": 10.0, "train__tokens": 40_960}, "config.optim.warmup is 10 steps, but the run has only 10"),
        ({"train__log_every": 2.5}, "config.train.log_every is 2.5, but from 1 on it counts steps"),
        ({"adapter__delta_t": 0.0}, "config.adapter.delta_t is 0.0: Input should be greater than 0"),
        ({"sampling__top_p": 0.0}, "config.sampling.top_p is 0.0"),
        (
            {"sampling__presence_penalty": 2.5},
            "config.sampling.presence_penalty is 2.5: Input should be less than or equal to 2",
        ),
        ({"solver__name": "l2m"}, "config.solver.name is 'l2m': Input should be 'normal', 'least_to_most'"),
        ({"solver__threshold": 1.5}, "config.solver.threshold is 1.5"),
        ({"solver__pipeline": ()}, "config.solver.pipeline is empty"),
        (
            {"solver__pipeline": ("normal", "escalation")},
            "config.solver.pipeline.1 is 'escalation': Input should be 'normal'",
        ),
    ],
)
def test_impossible_values_are_named(values, sentence):
    with pytest.raises(UserError) as error:
        validate(with_values(**values), NAMES)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"adapter__target_r": 64},
        {"adapter__tinit": 60.0, "adapter__tfinal": 39.0, "train__steps": 100},
        {"adapter__method": "lora", "adapter__target_r": 65},
        {"adapter__method": "none", "adapter__targets": (), "adapter__tinit": 0.9, "adapter__tfinal": 0.9},
        {"data__corpora__0__share": 0.0, "data__corpora__1__share": 0.0},
        {"train__batch_rows": 8, "train__accumulation": 4},
        {"sampling__temperature": 0.0},
    ],
)
def test_edges_are_legal(values):
    validate(with_values(**values), NAMES)


def test_sections_of_a_pipeline_are_named_from_the_root():
    with pytest.raises(UserError, match=r"config\.sft\.train\.batch_rows is 0"):
        validate(PipelineConfig(sft=with_values(train__batch_rows=0)))


def test_names_agree_with_the_packages_that_own_them():
    from gemma_keras.adapters.registry import ADAPTERS
    from gemma_keras.training.objectives.registry import OBJECTIVES

    found = {leaf.path: leaf.within for leaf in leaves(Config())}
    assert found["adapter.method"] == ("none", *ADAPTERS)
    assert found["train.loss"] == tuple(OBJECTIVES)
