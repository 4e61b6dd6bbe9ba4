"""Stage 1 by the recipe's published values: 50,000 steps of 8 conversations, each padded to a row of 512 tokens.

Launch: python -m scripts.train_sft --config=configs/published/stage1.py --workdir=DIR \\
            --config.model.weights=GEMMA_2_9B --config.data.root=CORPORA \\
            --config.data.system_prompts.endpoint.url=URL --config.data.system_prompts.endpoint.model=NAME
Hardware: any that holds the model. Expected hours on a TPU v5e-8: not measured; 205 M tokens with their padding, two thirds of
        them, make it three at least.
Expected result (published for the recipe, all tokens of the validation rows): perplexity 16.57 -> 3.86. In the published run
        ranks were never allocated: this is the run as it was meant.

How far the adapter can move. Adam moves a weight by about the learning rate a step at most, lora_E starts at 0, and A and B are
held near unit norm: so a singular value of a delta stays below about the sum of the learning rates times alpha / init_r. Here
that is 1.25 x 0.5 = 0.6, in stage 2 0.3, in stage 3 0.15. The rates belong to these many steps. Packed
(--config.data.packing=true) the same 5 passes are 16,000 steps, and the bound is 0.2; in 4,000 steps of 16 x 1,024 tokens it is
0.05, so that the adapter hardly moves, however many rows follow. configs/stage1.py is for packed rows.
"""

import dataclasses

from configs import stage1
from gemma_keras.config.sections import AdapterConfig, CorpusConfig, ModelConfig, OptimConfig, TrainConfig
from gemma_keras.config.stages import SftConfig


def stage(
    mixture: tuple[CorpusConfig, ...],
    *,
    init_r: int,
    target_r: int,
    alpha: float,
    tinit: int,
    tfinal: int,
    learning_rate: float,
    steps: int,
) -> SftConfig:
    """A stage as it was published; its warm-up is as long as `tinit`, and a pass is 10,000 steps."""
    return SftConfig(
        model=ModelConfig(architecture="gemma2_9b"),
        data=dataclasses.replace(stage1.data(mixture), sequence_length=512, packing=False),
        adapter=AdapterConfig(
            method="adalora", init_r=init_r, target_r=target_r, alpha=alpha, dropout=0.05, beta1=0.85, beta2=0.85, delta_t=10,
            tinit=tinit, tfinal=tfinal,
        ),
        optim=OptimConfig(learning_rate=learning_rate, warmup=tinit),
        train=TrainConfig(steps=steps, batch_rows=8, log_every=100, eval_every=500, save_every=500),
    )  # fmt: skip


def get_config() -> SftConfig:
    return stage(
        stage1.mixture(), init_r=64, target_r=32, alpha=32.0, tinit=500, tfinal=2000, learning_rate=5e-5, steps=50_000
    )
