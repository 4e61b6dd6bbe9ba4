import re

from gemma_keras.config.fields import PATHS, leaves, sections
from tests.config.everything import Config, CorpusConfig, DataConfig, PipelineConfig


def test_every_leaf_has_a_path_and_a_meaning():
    found = {leaf.path: leaf for leaf in leaves(PipelineConfig())}
    assert {"data.root", "pretrain.train.steps", "sft.adapter.targets"} <= found.keys()
    assert all(leaf.doc for leaf in found.values())


def test_entries_of_tuples_are_addressed_by_index():
    config = Config(data=DataConfig(corpora=(CorpusConfig(name="belle"), CorpusConfig(name="zh_wiki", share=0.5))))
    found = {leaf.path: leaf.value for leaf in leaves(config)}
    assert found["data.corpora.1.name"] == "zh_wiki"
    assert found["data.corpora.1.share"] == 0.5


def test_no_field_is_left_out():
    """Every field is a leaf, a section or a tuple of sections: a new kind of field must be taught to `leaves`."""
    config = Config(data=DataConfig(corpora=(CorpusConfig(),)))
    counted = sum(len(section.__dataclass_fields__) for _, section in sections(config))
    nested = len(list(sections(config))) - 1  # each section but the root is a field or an entry
    empty_tuples = 1  # data.validation
    assert len(list(leaves(config))) == counted - nested - empty_tuples


def test_every_field_that_names_a_file_is_a_path():
    """And none else: what a new field holds is told by its sentence, so that nobody forgets `~`."""
    naming = re.compile(r"\bfiles?\b.*;|(?<!weights' )\bfolder\b|^file |prepared data of|prompts that take")
    for leaf in leaves(PipelineConfig(sft=Config(data=DataConfig(corpora=(CorpusConfig(),))))):
        named = leaf.kind in (str, tuple[str, ...]) and bool(naming.search(leaf.doc))
        assert named == (leaf.holds == PATHS), (leaf.path, leaf.doc)


def test_setting_a_leaf_changes_the_section():
    config = Config()
    next(leaf for leaf in leaves(config) if leaf.path == "train.steps").value = 7
    assert config.train.steps == 7
