"""Recipe E: Gemma-2b learns to judge pairs of questions (QQP) and the grammar of sentences (CoLA) by answering 1 or 0.

Launch: python -m scripts.prepare_glue --config=configs/recipe_e.py --workdir=DIR --config.data.root=CORPORA
            for the json files of the recipe, and
        python -m scripts.train_sft --config=configs/recipe_e.py --workdir=DIR \\
            --config.model.weights=GEMMA_2B --config.data.root=CORPORA
Hardware: TPU v5e-8. Expected hours: not measured yet. The recipe trains on about 4,000 rows, part of them held out.
"""

from gemma_keras.config.sections import AdapterConfig, CorpusConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from gemma_keras.config.stages import SftConfig


def get_config() -> SftConfig:
    return SftConfig(
        model=ModelConfig(architecture="gemma_2b"),
        data=DataConfig(
            corpora=(
                CorpusConfig(name="qqp", path="qqp/**/train.*", share=0.5),
                CorpusConfig(name="cola", path="cola/train.tsv", share=0.5),
            ),
            rows=4_000,
            validation_rows=400,
            template="instruction",
            sequence_length=256,
        ),
        adapter=AdapterConfig(method="lora", init_r=16, alpha=32.0, dropout=0.05),
        optim=OptimConfig(learning_rate=2e-4),
        train=TrainConfig(epochs=3, batch_rows=8, log_every=20, save_every=100),
    )
