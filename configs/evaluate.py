"""Perplexity and token accuracy of any model on the stage-1 validation rows.

Launch: python -m scripts.evaluate --config=configs/evaluate.py --workdir=DIR --config.model.weights=MODEL
Hardware: any. Expected: seconds for gemma2_tiny on 2 CPU cores; the recipe's figures for Gemma-2-9b are 16.57 for the
base and 3.86 after stage 1 (published, all tokens).
"""

from gemma_keras.config.sections import CorpusConfig, DataConfig, TrainConfig
from gemma_keras.config.stages import EvaluateConfig


def get_config() -> EvaluateConfig:
    return EvaluateConfig(
        data=DataConfig(validation=(CorpusConfig(name="gemmalm_chinese"),), sequence_length=512),
        train=TrainConfig(batch_rows=8),
    )
