"""Stage 2, tasks, small: translation, stories and questions, with 70 % of stage 1's rows. Starts from stage 1's model.

Launch: python -m scripts.train_sft --config=configs/gemma3_270m/stage2.py --workdir=DIR \\
            --config.model.weights=STAGE1/export --config.data.root=CORPORA --config.data.earlier=STAGE1/data
        Without data.earlier the rows of stage 1 are drawn from its corpora; with it, from the rows that it trained on.
Hardware: 2 CPU cores, 8 GB, or one GPU (there with --config.model.dtype=bfloat16). Expected: 400,000 tokens, about an hour.

Shares are the recipe's (configs/stage2.py). Of a corpus that is not at hand the package's own rows of that kind are taken, and
what is too small gives what it has; the report says which.
"""

from configs import stage2
from configs.gemma3_270m.stage1 import held_out, stage
from configs.stage1 import corpora
from gemma_keras.config.sections import CorpusConfig, DataConfig, SystemPromptConfig
from gemma_keras.config.stages import SftConfig

# What the recipe draws of Belle and Alpaca-GPT4-zh; here the larger alpaca_chinese stands in for most of the second.
POOLS = {"belle": 2, "alpaca_gpt4_zh": 2, "alpaca_chinese": 4}


def data(mixture: tuple[CorpusConfig, ...], rows: int, path: str) -> DataConfig:
    """What the later stages have in common."""
    return DataConfig(
        corpora=mixture,
        validation=held_out(path),
        rows=rows,
        too_small="less",
        missing="builtin",
        system_prompts=SystemPromptConfig(none=0.6, fixed=0.4),
        sequence_length=512,
    )


def get_config() -> SftConfig:
    mixture = corpora("stage1", POOLS, 0.7) + corpora("stage2", stage2.POOLS, 0.3)
    rows = data(mixture, 3_000, "gemmalm_chinese/stage2/data_mixed/valid.json")
    return stage(rows, init_r=12, target_r=6, learning_rate=6e-4, tokens=400_000)
