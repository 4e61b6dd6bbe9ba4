"""Stage 3, poetry and classical Chinese, small, with half of stage 1's and 30 % of stage 2's rows. Starts from stage 2's model.

Launch: python -m scripts.train_sft --config=configs/gemma3_270m/stage3.py --workdir=DIR \\
            --config.model.weights=STAGE2/export --config.data.root=CORPORA \\
            --config.data.earlier=STAGE1/data,STAGE2/data
        Without data.earlier the rows of earlier stages are drawn from their corpora.
Hardware: 2 CPU cores, 8 GB, or one GPU (there with --config.model.dtype=bfloat16). Expected: 300,000 tokens, three quarters of an
        hour.
"""

from configs import stage2 as recipe_stage2
from configs import stage3 as recipe_stage3
from configs.gemma3_270m.stage1 import stage
from configs.gemma3_270m.stage2 import POOLS, data
from configs.stage1 import corpora
from gemma_keras.config.stages import SftConfig


def get_config() -> SftConfig:
    earlier = corpora("stage1", POOLS, 0.5) + corpora("stage2", recipe_stage2.POOLS, 0.3)
    mixture = earlier + corpora("stage3", recipe_stage3.POOLS, 0.2)
    rows = data(mixture, 2_500, "gemmalm_chinese/stage3/data_mixed/valid.json")
    return stage(rows, init_r=8, target_r=4, learning_rate=4e-4, tokens=300_000)
