import json

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.config.serialization import from_dict, to_dict
from tests.config.everything import Config, CorpusConfig, DataConfig, PipelineConfig, TrainConfig


def full_config() -> Config:
    corpora = (CorpusConfig(name="belle", share=0.25), CorpusConfig(name="zh_wiki", share=0.75))
    return Config(data=DataConfig(corpora=corpora), train=TrainConfig(steps=10), questions=("你好，世界", "a, b"))


@pytest.mark.parametrize("config", [Config(), full_config(), PipelineConfig(sft=full_config())])
def test_round_trip(config):
    assert from_dict(json.loads(json.dumps(to_dict(config))), type(config)) == config
    assert from_dict(to_dict(config), type(config)) == config


def test_absent_fields_take_their_defaults_and_whole_numbers_serve_as_numbers():
    config = from_dict({"optim": {"clip_norm": 2}}, Config)
    assert config == from_dict({"optim": {"clip_norm": 2.0}}, Config)
    assert type(config.optim.clip_norm) is float


def test_copies_share_no_section():
    data = DataConfig()
    config = PipelineConfig(pretrain=Config(data=data), sft=Config(data=data))
    copy = from_dict(to_dict(config), PipelineConfig)
    copy.pretrain.data.seed = 5
    assert (copy.sft.data.seed, data.seed) == (0, 0)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"trian": {}}, "config.trian is {}: Unexpected keyword argument"),
        ({"train": {"step": 1}}, "config.train.step is 1: Unexpected keyword argument"),
        ({"train": {"steps": "10"}}, "config.train.steps is '10': Input should be a valid integer"),
        ({"train": {"steps": 1.5}}, "config.train.steps is 1.5"),
        ({"train": {"steps": True}}, "config.train.steps is True"),
        ({"optim": {"learning_rate": None}}, "config.optim.learning_rate is None: Input should be a valid number"),
        ({"adapter": {"peft_compatible": 1}}, "Input should be a valid boolean"),
        ({"adapter": {"targets": "query"}}, "config.adapter.targets is 'query': Input should be a valid array"),
        ({"questions": [1]}, "config.questions.0 is 1"),
        (
            {"data": {"corpora": [{"nam": "belle"}]}},
            "config.data.corpora.0.nam is 'belle': Unexpected keyword argument",
        ),
        ({"data": None}, "config.data is None"),
    ],
)
def test_mistakes_are_named(values, sentence):
    with pytest.raises(UserError) as error:
        from_dict(values, Config)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
