"""Recipe C, dialogue: the model of 43 million weights learns to talk about a reference passage, and in general.

Launch: python -m scripts.train_sft --config=configs/recipe_c_dialogue.py --workdir=DIR \\
            --config.model.weights=PRETRAINED --config.data.root=CORPORA
Hardware: TPU v5e-8. Expected hours: not measured yet. Published for the recipe: token accuracy 57.6 to 60.2 %.
The passage is the system turn of a RedGPT dialogue; the template writes it before the turns.
"""

from gemma_keras.config.sections import CorpusConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from gemma_keras.config.stages import SftConfig

CORPORA = ("redgpt", "naturalconv", "pclue", "belle_05m", "belle_multiturn", "deepctrl_sft")


def get_config() -> SftConfig:
    return SftConfig(
        model=ModelConfig(architecture="gemma2_43m"),
        data=DataConfig(
            corpora=tuple(CorpusConfig(name=name) for name in CORPORA),
            validation_rows=1_000,
            template="passage",
            sequence_length=1024,
        ),
        optim=OptimConfig(learning_rate=3e-4),
        train=TrainConfig(epochs=2, batch_rows=64, log_every=20, save_every=1_000),
    )
