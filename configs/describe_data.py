"""Which files the account of the corpora reads besides each entry's usual places: other parts of the same corpora.

Launch: python -m scripts.describe_data --workdir=DIR --config.data.root=CORPORA; then copy DIR/data.md to docs/data.md
"""

from gemma_keras.config.sections import CorpusConfig, DataConfig
from gemma_keras.config.stages import DescribeDataConfig

MORE = (
    ("gemmalm_chinese", "gemmalm_chinese/*/data_*/valid.json"),
    ("text", "gemmalm_chinese/*/system_prompts_gpt/*.json"),
    ("news_commentary", "news_commentary_zh_en/valid.jsonl"),
    ("text", "classical_modern/**/source.txt"),
    ("text", "classical_modern/**/target.txt"),
)


def get_config() -> DescribeDataConfig:
    return DescribeDataConfig(data=DataConfig(corpora=tuple(CorpusConfig(name=name, path=path) for name, path in MORE)))
