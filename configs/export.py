"""Any readable weights (Hugging Face folder, Keras preset, GGUF file) as a Hugging Face folder.

Launch: python -m scripts.export --config=configs/export.py --workdir=DIR --config.model.weights=MODEL
Hardware: any; memory for the weights once and one shard.
"""

from gemma_keras.config.stages import ExportStageConfig


def get_config() -> ExportStageConfig:
    return ExportStageConfig()
