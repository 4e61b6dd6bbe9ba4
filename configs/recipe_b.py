"""Recipe B: Gemma-2b with LoRA on fifteen public Chinese corpora, in Gemma's own chat format.

Launch: python -m scripts.train_sft --config=configs/recipe_b.py --workdir=DIR \\
            --config.model.weights=GEMMA_2B --config.data.root=CORPORA
        Take out corpora that you do not have in a copy of this file.
Hardware: TPU v5e-8. Expected hours: not measured yet. Settings: published for the recipe (questions and answers of at
most 255 tokens each, 128 rows a step, 3 epochs); rows are packed here.
"""

from gemma_keras.config.sections import AdapterConfig, CorpusConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from gemma_keras.config.stages import SftConfig

CORPORA = (
    "guanaco", "sharegpt_cn", "refgpt_fact", "coig", "gpt4_llm_zh", "alpaca_chinese", "belle", "alpaca_cot",
    "hc3_chinese", "firefly", "instruction_wild", "moss", "safety_prompts", "oasst", "tigerbot",
)  # fmt: skip


def get_config() -> SftConfig:
    return SftConfig(
        model=ModelConfig(architecture="gemma_2b"),
        data=DataConfig(
            corpora=tuple(CorpusConfig(name=name) for name in CORPORA),
            validation_rows=1_000,
            template="gemma",
            sequence_length=512,
        ),
        adapter=AdapterConfig(method="lora", targets=("query", "key", "value"), init_r=16, alpha=32.0, dropout=0.05),
        optim=OptimConfig(learning_rate=2e-4),
        train=TrainConfig(epochs=3, batch_rows=32, log_every=20, save_every=500),
    )
