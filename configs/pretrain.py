"""A small Gemma 2 from scratch on Chinese text, every weight trained.

Launch: python -m scripts.pretrain --config=configs/pretrain.py --workdir=DIR --config.data.root=CORPORA \\
            --config.model.architecture=gemma2_43m --config.tokenizer.vocabulary_size=16384
Hardware: TPU v5e-8; gemma2_tiny runs on 2 CPU cores. Expected hours: not measured yet.
Expected result: not measured yet.

A few conversations are mixed in: the embeddings of the turn tokens are frozen later, so they have to be trained here.
"""

from gemma_keras.config.sections import CorpusConfig, DataConfig, ExportConfig, OptimConfig, TrainConfig
from gemma_keras.config.stages import PretrainConfig


def get_config() -> PretrainConfig:
    return PretrainConfig(
        data=DataConfig(
            corpora=(
                CorpusConfig(name="zh_wiki"),
                CorpusConfig(name="cluecorpussmall"),
                CorpusConfig(name="alpaca_gpt4_zh", limit=200),
            ),
            validation=(CorpusConfig(name="gemmalm_chinese"),),
            loss_on="all",
            sequence_length=512,
        ),
        optim=OptimConfig(learning_rate=1e-3, warmup=0.02, weight_decay=0.1, beta2=0.95),
        train=TrainConfig(epochs=1, batch_rows=16, log_every=20, save_every=500),
        export=ExportConfig(dtype="float32"),
    )
