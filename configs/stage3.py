"""Stage 3, poetry and classical Chinese, with half of stage 1's and 30 % of stage 2's rows. Starts from stage 2's model.

Launch: python -m scripts.train_sft --config=configs/stage3.py --workdir=DIR --config.model.weights=STAGE2/export \\
            --config.data.root=CORPORA --config.data.earlier=STAGE1/data,STAGE2/data \\
            --config.data.system_prompts.endpoint.url=URL --config.data.system_prompts.endpoint.model=NAME
        Without data.earlier the rows of earlier stages are drawn from their corpora.
Hardware: TPU v5e-8 (8 devices). Expected hours, estimated as those of stage 1: 0.7 for 53 M tokens, which are 3 passes over
        80,000 rows of 221 tokens.
Mixture (published for the recipe, by random draws): instruction 40,000, translation 9,219, story_generation 8,861,
dialogue 5,920, ancient_poetry_creation 5,348, classical_translation 5,342, modern_poetry_creation 5,310. Ours is exact:
40,000, 9,249, 8,808, 5,943, 5,334, 5,333, 5,333; `--config.data.sampling=random` draws as the recipe did.
The recipe's own values are in configs/published/stage3.py.
"""

from configs import stage1, stage2
from configs.stage1 import corpora, stage
from gemma_keras.config.sections import CorpusConfig
from gemma_keras.config.stages import SftConfig

POOLS = {"chinese_poetry": 1, "chinese_modern_poetry": 1, "classical_modern": 1}


def mixture() -> tuple[CorpusConfig, ...]:
    """What stage 3 is trained on."""
    earlier = corpora("stage1", stage1.POOLS, 0.5) + corpora("stage2", stage2.POOLS, 0.3)
    return earlier + corpora("stage3", POOLS, 0.2)


def get_config() -> SftConfig:
    return stage(mixture(), init_r=32, target_r=16, learning_rate=8e-5, tokens=53_000_000)
