"""Recipe A, preferences: a model answers C-Eval's validation questions; its letter is preferred to its sentence.

Launch: python -m scripts.make_letter_pairs --workdir=DIR --config.model.weights=STAGE3/export --config.data.root=CORPORA
        The pairs are then a corpus for DPO: CorpusConfig(name="preference", path="DIR/train.json").
Hardware: TPU v5e-8. Expected (published for the recipe): of 1,346 questions one answered by exactly a letter; 1,107 pairs
for training, 238 for validation.
"""

from gemma_keras.config.sections import CorpusConfig, DataConfig, InferenceConfig, SamplingConfig
from gemma_keras.config.stages import LetterPairsConfig


def get_config() -> LetterPairsConfig:
    return LetterPairsConfig(
        data=DataConfig(corpora=(CorpusConfig(name="ceval", path="ceval/val"),)),
        sampling=SamplingConfig(max_new_tokens=64, temperature=0.0, repetition_penalty=1.0),
        inference=InferenceConfig(max_rows=16),
    )
