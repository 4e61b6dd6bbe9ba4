"""A real Gemma, small: google/gemma-3-270m tuned with AdaLoRA on the package's own rows, or on --config.data.root.

Launch: bash scripts/quickstart.sh --real [--config.data.root=DIR]
        It names the weights: --config.sft.model.weights=FILE.gguf
Hardware: 2 CPU cores, 8 GB. Expected: about 10 minutes; figures in docs/experiments.md.
"""

import dataclasses

from configs import quickstart
from gemma_keras.config.sections import AdapterConfig, OptimConfig, SamplingConfig, TrainConfig
from gemma_keras.config.stages import PipelineConfig


def get_config() -> PipelineConfig:
    small = quickstart.get_config().sft
    return PipelineConfig(
        sft=dataclasses.replace(
            small,
            # A template of plain labels, by which a pretrained model can be asked, too.
            data=dataclasses.replace(small.data, template="passage", sequence_length=256),
            adapter=AdapterConfig(
                method="adalora", init_r=12, target_r=8, alpha=32.0, dropout=0.0, delta_t=5, tinit=0.1, tfinal=0.4,
                orth_reg_weight=0.1,
            ),
            optim=OptimConfig(learning_rate=2e-3, warmup=0.05),
            train=TrainConfig(steps=100, batch_rows=2, log_every=5, eval_every=25, save_every=50),
            # A pretrained model of this size repeats itself without end where it answers greedily.
            sampling=SamplingConfig(max_new_tokens=96, temperature=0.5, top_p=0.9, repetition_penalty=1.2, seed=2),
            # The last two are of the rows that are held out.
            questions=(*small.questions, "我们班的足球队叫什么名字好？", "去海边露营一晚，需要带什么？"),
        )
    )  # fmt: skip
