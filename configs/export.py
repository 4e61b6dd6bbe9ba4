"""Any readable weights (Hugging Face folder, Keras preset) as a Hugging Face folder.

Launch: python -m scripts.export --config=configs/export.py --workdir=DIR --config.model.weights=MODEL
Hardware: any; memory for the weights once and one shard.
"""

from gemma_keras.config.schema import Config, ModelConfig


def get_config() -> Config:
    return Config(model=ModelConfig(dtype="float32"))
