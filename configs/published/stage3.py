"""Stage 3 by the recipe's published values: 30,000 steps of 8 conversations, each padded to a row of 512 tokens.

Launch: python -m scripts.train_sft --config=configs/published/stage3.py --workdir=DIR --config.model.weights=STAGE2/export \\
            --config.data.root=CORPORA --config.data.earlier=STAGE1/data,STAGE2/data \\
            --config.data.system_prompts.endpoint.url=URL --config.data.system_prompts.endpoint.model=NAME
Hardware: any that holds the model. Expected hours on a TPU v5e-8: three fifths of those of stage 1. What these values do, and
        what packing does to them, is told in configs/published/stage1.py.
"""

from configs import stage3
from configs.published.stage1 import stage
from gemma_keras.config.stages import SftConfig


def get_config() -> SftConfig:
    return stage(
        stage3.mixture(), init_r=32, target_r=16, alpha=16.0, tinit=300, tfinal=1000, learning_rate=2e-5, steps=30_000
    )
