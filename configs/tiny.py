"""A small instruction stage on the builtin conversations: what scripts.prepare_data and scripts.train_sft take by default.

Launch: python -m scripts.train_sft --workdir=DIR --config.model.weights=BASE
        BASE is a model of this package, such as runs/quickstart/pretrain/export after bash scripts/quickstart.sh.
Hardware: 2 CPU cores, 4 GB. Expected: some minutes; answers have the form of answers, not yet their sense.
The recipe's stages are configs/stage1.py, stage2.py and stage3.py.
"""

from gemma_keras.config.sections import (
    AdapterConfig,
    CorpusConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    SystemPromptConfig,
    TrainConfig,
)
from gemma_keras.config.stages import SftConfig


def get_config() -> SftConfig:
    return SftConfig(
        model=ModelConfig(dtype="float32"),
        data=DataConfig(
            corpora=tuple(CorpusConfig(name=name) for name in ("belle", "alpaca_gpt4_zh", "alpaca_chinese")),
            validation_rows=100,
            system_prompts=SystemPromptConfig(none=0.5, fixed=0.5),
            sequence_length=512,
        ),
        adapter=AdapterConfig(method="adalora", init_r=16, target_r=8, delta_t=5, tinit=0.1, tfinal=0.3),
        optim=OptimConfig(learning_rate=5e-3, warmup=0.05),
        train=TrainConfig(epochs=2, batch_rows=4, log_every=10, save_every=100),
    )
