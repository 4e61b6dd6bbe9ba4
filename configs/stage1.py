"""Stage 1, general instructions: Gemma-2-9b tuned with AdaLoRA on Belle and Alpaca-GPT4-zh.

Launch: python -m scripts.train_sft --config=configs/stage1.py --workdir=DIR \\
            --config.model.weights=GEMMA_2_9B --config.data.root=CORPORA \\
            --config.data.system_prompts.endpoint.url=URL --config.data.system_prompts.endpoint.model=NAME
        Without a model to write system prompts:
            --config.data.system_prompts.dynamic=0 --config.data.system_prompts.fixed=0.8
Hardware: TPU v5e-8 (8 devices). Expected hours: not measured; by scripts.preflight's estimate about 1, with 16 rows of 1,024
        tokens a step (--config.data.sequence_length=1024 --config.train.batch_rows=16): 62 M tokens at 18,800 a second.
Expected result (published for the recipe, all tokens of the validation rows): perplexity 16.57 -> 3.86.

The recipe ran 8 unpadded rows a step for 50,000 steps. Packed rows hold several conversations each, so its step counts
(tinit 500, tfinal 2,000, warm-up 500) are given here as shares of the run.
"""

from gemma_keras.config.sections import (
    AdapterConfig,
    CleaningConfig,
    CorpusConfig,
    DataConfig,
    OptimConfig,
    SystemPromptConfig,
    TrainConfig,
)
from gemma_keras.config.stages import SftConfig

POOLS = {"belle": 1, "alpaca_gpt4_zh": 1}


def corpora(group: str, pools: dict[str, int], share: float) -> tuple[CorpusConfig, ...]:
    """The corpora of a stage by the sizes of its pools, which together make up `share` of a mixture."""
    total = sum(pools.values())
    return tuple(CorpusConfig(name=name, group=group, share=share * size / total) for name, size in pools.items())


def stage(
    mixture: tuple[CorpusConfig, ...],
    init_r: int,
    target_r: int,
    alpha: float,
    tfinal: float,
    learning_rate: float,
    epochs: int,
) -> SftConfig:
    """What the three stages have in common: 80,000 training and 1,000 validation rows, one in five without system prompt."""
    return SftConfig(
        data=DataConfig(
            corpora=mixture,
            rows=80_000,
            validation_rows=1_000,
            template="gemmalm_zh",
            too_small="repeat",
            system_prompts=SystemPromptConfig(none=0.2, fixed=0.4, dynamic=0.4),
            cleaning=CleaningConfig(contamination=("ceval", "cmmlu", "qqp", "cola", "csl")),
            sequence_length=512,
        ),
        adapter=AdapterConfig(
            method="adalora", init_r=init_r, target_r=target_r, alpha=alpha, dropout=0.05, beta1=0.85, beta2=0.85, delta_t=10,
            tinit=0.01, tfinal=tfinal,
        ),
        optim=OptimConfig(learning_rate=learning_rate, warmup=0.01),
        train=TrainConfig(epochs=epochs, batch_rows=8, log_every=100, eval_every=500, save_every=500),
    )  # fmt: skip


def get_config() -> SftConfig:
    mixture = corpora("stage1", POOLS, 1.0)
    return stage(mixture, init_r=64, target_r=32, alpha=32.0, tfinal=0.04, learning_rate=5e-5, epochs=5)
