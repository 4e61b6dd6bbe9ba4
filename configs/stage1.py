"""Stage 1, general instructions: Gemma-2-9b tuned with AdaLoRA on Belle and Alpaca-GPT4-zh.

Launch: python -m scripts.train_sft --config=configs/stage1.py --workdir=DIR \\
            --config.model.weights=GEMMA_2_9B --config.data.root=CORPORA \\
            --config.data.system_prompts.endpoint.url=URL --config.data.system_prompts.endpoint.model=NAME
        Without a model to write system prompts:
            --config.data.system_prompts.dynamic=0 --config.data.system_prompts.fixed=0.8
Hardware: TPU v5e-8 (8 devices), for which it is sized: 16 rows of 1,024 tokens a step. Expected hours, not measured: by
        scripts.preflight's estimate, 20,000 tokens a second at half of the matmul peak, 0.9 for 67 M tokens. These are 5
        passes over 80,000 rows of 168 tokens (mean of the recipe's own validation rows, system prompts included).
Expected result (published for the recipe, all tokens of the validation rows): perplexity 16.57 -> 3.86.

The length is given in tokens and all else as shares of the run, so that another batch or another length of row changes none of
it; of a few rows for a trial (data.rows), give fewer train.tokens, too. The recipe's own values, for 50,000 steps of 8 rows that
are not packed, are in configs/published/stage1.py; packed they would hardly move the model. Here triplets start as LoRA's do, at
rates that LoRA is usually tuned with, which are not measured on 9b.
"""

from gemma_keras.config.sections import (
    AdapterConfig,
    CleaningConfig,
    CorpusConfig,
    DataConfig,
    ModelConfig,
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


def mixture() -> tuple[CorpusConfig, ...]:
    """What stage 1 is trained on."""
    return corpora("stage1", POOLS, 1.0)


def data(mixture: tuple[CorpusConfig, ...]) -> DataConfig:
    """What the three stages have in common: 80,000 training and 1,000 validation rows, one in five without system prompt."""
    return DataConfig(
        corpora=mixture,
        rows=80_000,
        validation_rows=1_000,
        template="gemmalm_zh",
        too_small="repeat",
        system_prompts=SystemPromptConfig(none=0.2, fixed=0.4, dynamic=0.4),
        cleaning=CleaningConfig(contamination=("ceval", "cmmlu", "qqp", "cola", "csl")),
        sequence_length=1024,
    )


def stage(
    mixture: tuple[CorpusConfig, ...], *, init_r: int, target_r: int, learning_rate: float, tokens: int
) -> SftConfig:
    """A stage on packed rows, sized for a v5e-8. Triplets start as LoRA does and learn at LoRA's rates."""
    return SftConfig(
        model=ModelConfig(architecture="gemma2_9b"),
        data=data(mixture),
        adapter=AdapterConfig(
            method="adalora", init_r=init_r, target_r=target_r, alpha=2.0 * init_r, start="zero_B", orth_reg_weight=0.0,
            dropout=0.05, beta1=0.85, beta2=0.85, delta_t=0.0025, tinit=0.01, tfinal=0.04,
        ),
        optim=OptimConfig(learning_rate=learning_rate, warmup=0.01),
        train=TrainConfig(tokens=tokens, batch_rows=16, log_every=0.01, save_every=0.05),
    )  # fmt: skip


def get_config() -> SftConfig:
    return stage(mixture(), init_r=64, target_r=32, learning_rate=2e-4, tokens=67_000_000)
