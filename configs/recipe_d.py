"""Recipe D: Gemma-2-9b-it on general Chinese, code, arithmetic, medical and counselling dialogues.

Launch: python -m scripts.train_sft --config=configs/recipe_d.py --workdir=DIR \\
            --config.model.weights=GEMMA_2_9B_IT --config.data.root=CORPORA
Hardware: TPU v5e-8. Expected hours: not measured yet. Published for the recipe, 0-shot: C-Eval 29.4 -> 55.1,
CMMLU 31.88 -> 58.45. Its preference pairs: configs/recipe_d_preference.py.
"""

from gemma_keras.config.sections import (
    AdapterConfig,
    CleaningConfig,
    CorpusConfig,
    DataConfig,
    OptimConfig,
    TrainConfig,
)
from gemma_keras.config.stages import SftConfig

CORPORA = (
    "llama3_chinese_sharegpt", "python_code_instructions", "mathglm", "qizhengpt", "huatuo", "chatmed", "shennong_tcm",
    "smile",
)  # fmt: skip


def get_config() -> SftConfig:
    return SftConfig(
        data=DataConfig(
            corpora=tuple(CorpusConfig(name=name) for name in CORPORA),
            validation_rows=1_000,
            template="gemma",
            cleaning=CleaningConfig(contamination=("ceval", "cmmlu")),
            sequence_length=1024,
        ),
        adapter=AdapterConfig(method="adalora", init_r=32, target_r=16, alpha=32.0),
        optim=OptimConfig(learning_rate=5e-5),
        train=TrainConfig(epochs=2, batch_rows=16, log_every=20, save_every=500),
    )
