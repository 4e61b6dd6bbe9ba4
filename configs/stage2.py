"""Stage 2, tasks: translation, stories and questions, with 70 % of stage 1's rows. Starts from stage 1's model.

Launch: python -m scripts.train_sft --config=configs/stage2.py --workdir=DIR --config.model.weights=STAGE1/export \\
            --config.data.root=CORPORA --config.data.earlier=STAGE1/data \\
            --config.data.system_prompts.endpoint.url=URL --config.data.system_prompts.endpoint.model=NAME
        Without data.earlier the rows of stage 1 are drawn from its corpora; with it, from the rows that it trained on.
Hardware: TPU v5e-8 (8 devices). Expected hours, estimated as those of stage 1: 1.0 for 73 M tokens, which are 4 passes over
        80,000 rows of 228 tokens: translations and questions are about as long as stage 1's rows, stories take most of 1,024.
Mixture (published for the recipe, by random draws): instruction 56,000, translation 9,178, story_generation 8,792,
dialogue 6,030. Ours is exact: 56,000, 9,249, 8,808, 5,943; `--config.data.sampling=random` draws as the recipe did.
The recipe's own values are in configs/published/stage2.py.
"""

from configs import stage1
from configs.stage1 import corpora, stage
from gemma_keras.config.sections import CorpusConfig
from gemma_keras.config.stages import SftConfig

# The sizes of the recipe's.
POOLS = {"news_commentary": 16_000, "firefly": 15_238, "hc3_chinese": 10_282}


def mixture() -> tuple[CorpusConfig, ...]:
    """What stage 2 is trained on."""
    return corpora("stage1", stage1.POOLS, 0.7) + corpora("stage2", POOLS, 0.3)


def get_config() -> SftConfig:
    return stage(mixture(), init_r=48, target_r=24, learning_rate=1.2e-4, tokens=73_000_000)
