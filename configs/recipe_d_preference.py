"""Recipe D, preferences: pairs of a preferred and a rejected answer, prepared for DPO.

Launch: python -m scripts.prepare_data --config=configs/recipe_d_preference.py --workdir=DIR --config.data.root=CORPORA
Hardware: any. Prompts of at most 512, pairs of at most 1,024 tokens, as in recipe A's preference stage.
"""

from gemma_keras.config.sections import CleaningConfig, CorpusConfig, DataConfig
from gemma_keras.config.stages import PrepareConfig

CORPORA = ("dpo_en_zh_20k", "orca_dpo_pairs", "chinese_dpo_pairs")


def get_config() -> PrepareConfig:
    return PrepareConfig(
        data=DataConfig(
            corpora=tuple(CorpusConfig(name=name) for name in CORPORA),
            validation_rows=200,
            template="gemma",
            cleaning=CleaningConfig(contamination=("ceval", "cmmlu")),
            max_prompt_tokens=512,
            sequence_length=1024,
        ),
    )
