"""Stage 1, general instructions, small: google/gemma-3-270m tuned with AdaLoRA on Belle and Alpaca, about an hour on two cores.

Launch: python -m scripts.train_sft --config=configs/gemma3_270m/stage1.py --workdir=DIR \\
            --config.model.weights=GEMMA_3_270M --config.data.root=CORPORA
        GEMMA_3_270M is the pretrained model: its Hugging Face folder or a GGUF file of it.
Hardware: 2 CPU cores, 8 GB, or one GPU (there with --config.model.dtype=bfloat16). Expected: 400,000 tokens (3,200 of 4,023
        rows, where slices of the corpora are at hand) at some 130 a second, and at the end the figures of all 800 validation
        rows: about an hour. Result: not measured yet.

The chat template is that of the weights; the pretrained model has none and gets the recipe's, gemmalm_zh, for whose turns its
tokenizer has the pieces. Fixed system prompts have the recipe's share, and those that a large model would write are left out.
"""

from gemma_keras.config.sections import (
    AdapterConfig,
    CorpusConfig,
    DataConfig,
    ExportConfig,
    ModelConfig,
    OptimConfig,
    SystemPromptConfig,
    TrainConfig,
)
from gemma_keras.config.stages import SftConfig

# The most rows that are taken of each. Belle and Alpaca-GPT4-zh, of which only slices may be at hand, are topped up.
LIMITS = {"belle": 1_200, "alpaca_gpt4_zh": 1_200, "alpaca_chinese": 2_400}


def stage(data: DataConfig, *, init_r: int, target_r: int, learning_rate: float, tokens: int) -> SftConfig:
    """A stage of two packed rows a step, one at a time, which takes the least memory."""
    return SftConfig(
        model=ModelConfig(architecture="gemma3_270m", dtype="float32"),
        data=data,
        adapter=AdapterConfig(
            method="adalora", init_r=init_r, target_r=target_r, alpha=2.0 * init_r, start="zero_B", orth_reg_weight=0.0,
            dropout=0.0, delta_t=0.02, tinit=0.1, tfinal=0.3,
        ),
        optim=OptimConfig(learning_rate=learning_rate, warmup=0.05),
        train=TrainConfig(tokens=tokens, batch_rows=2, accumulation=2, log_every=0.02, save_every=0.1),
        export=ExportConfig(dtype="float32"),
    )  # fmt: skip


def held_out(path: str = "") -> tuple[CorpusConfig, ...]:
    """Rows of the recipe's own validation files, with their system prompts; empty: those of stage 1."""
    return (CorpusConfig(name="gemmalm_chinese", path=path),)


def get_config() -> SftConfig:
    data = DataConfig(
        corpora=tuple(CorpusConfig(name=name, limit=limit) for name, limit in LIMITS.items()),
        validation=held_out(),
        system_prompts=SystemPromptConfig(none=0.6, fixed=0.4),
        sequence_length=512,
    )
    return stage(data, init_r=16, target_r=8, learning_rate=1e-3, tokens=400_000)
