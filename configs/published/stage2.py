"""Stage 2 by the recipe's published values: 40,000 steps of 8 conversations, each padded to a row of 512 tokens.

Launch: python -m scripts.train_sft --config=configs/published/stage2.py --workdir=DIR --config.model.weights=STAGE1/export \\
            --config.data.root=CORPORA --config.data.earlier=STAGE1/data \\
            --config.data.system_prompts.endpoint.url=URL --config.data.system_prompts.endpoint.model=NAME
Hardware: any that holds the model. Expected hours on a TPU v5e-8: four fifths of those of stage 1. What these values do, and
        what packing does to them, is told in configs/published/stage1.py.
"""

from configs import stage2
from configs.published.stage1 import stage
from gemma_keras.config.stages import SftConfig


def get_config() -> SftConfig:
    return stage(
        stage2.mixture(), init_r=48, target_r=24, alpha=24.0, tinit=400, tfinal=1500, learning_rate=3e-5, steps=40_000
    )
