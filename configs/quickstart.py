"""The whole flow, small: a base model of a million weights from scratch, then stage 1 with AdaLoRA.

Launch: bash scripts/quickstart.sh [--config.data.root=DIR]
Hardware: 2 CPU cores, 4 GB. Expected (measured): see the README.
"""

from gemma_keras.config.sections import (
    AdapterConfig,
    CorpusConfig,
    DataConfig,
    ExportConfig,
    ModelConfig,
    OptimConfig,
    SamplingConfig,
    TrainConfig,
)
from gemma_keras.config.stages import PipelineConfig, PipelineSftConfig, PretrainConfig

CONVERSATIONS = ("belle", "alpaca_gpt4_zh", "alpaca_chinese")
HELD_OUT = (CorpusConfig(name="gemmalm_chinese"),)


def get_config() -> PipelineConfig:
    return PipelineConfig(pretrain=_pretrain(), sft=_sft())


def _pretrain() -> PretrainConfig:
    text = tuple(CorpusConfig(name=name) for name in ("zh_wiki", "cluecorpussmall"))
    # A few conversations, so that the embeddings of the turn tokens are trained before they are frozen.
    dialogues = tuple(CorpusConfig(name=name, limit=40) for name in CONVERSATIONS)
    return PretrainConfig(
        model=ModelConfig(dtype="float32"),
        data=DataConfig(corpora=text + dialogues, validation=HELD_OUT, loss_on="all", sequence_length=256),
        optim=OptimConfig(learning_rate=3e-3, warmup=0.05, weight_decay=0.1, beta2=0.95),
        train=TrainConfig(steps=160, batch_rows=8, log_every=10, save_every=100),
        export=ExportConfig(dtype="float32"),
    )


def _sft() -> PipelineSftConfig:
    return PipelineSftConfig(
        model=ModelConfig(dtype="float32"),
        data=DataConfig(
            corpora=tuple(CorpusConfig(name=name) for name in CONVERSATIONS), validation=HELD_OUT, sequence_length=512
        ),
        # So small a base leaves little to attention alone: every projection gets an adapter.
        adapter=AdapterConfig(
            method="adalora",
            targets=("query", "key", "value", "attention_output", "ffw_gating", "ffw_gating_2", "ffw_linear"),
            init_r=16,
            target_r=8,
            alpha=64.0,
            delta_t=5,
            tinit=0.1,
            tfinal=0.3,
            orth_reg_weight=0.1,
        ),
        optim=OptimConfig(learning_rate=1e-2, warmup=0.05),
        train=TrainConfig(steps=240, batch_rows=4, log_every=10, save_every=100),
        sampling=SamplingConfig(max_new_tokens=128),
        export=ExportConfig(dtype="float32"),
        questions=("请用一句话介绍春节。", "周末适合做什么？", "怎样才能养成早起的习惯？"),
    )
