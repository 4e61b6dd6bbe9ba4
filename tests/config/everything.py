"""A configuration with every section, for what is true of all."""

import dataclasses

from gemma_keras.config import stages
from gemma_keras.config.fields import TEXTS, field, section
from gemma_keras.config.sections import *  # noqa: F403
from gemma_keras.config.sections import InferenceConfig, SamplingConfig, SolverConfig, TrainConfig
from gemma_keras.config.stages import TrainingConfig


@dataclasses.dataclass(slots=True, kw_only=True)
class Config(TrainingConfig):
    train: TrainConfig = section(TrainConfig)
    sampling: SamplingConfig = section(SamplingConfig)
    inference: InferenceConfig = section(InferenceConfig)
    solver: SolverConfig = section(SolverConfig)
    questions: tuple[str, ...] = field((), "questions to answer", TEXTS)


@dataclasses.dataclass(slots=True, kw_only=True)
class PipelineConfig(stages.PipelineConfig):
    pretrain: Config = section(Config)  # type: ignore[assignment]
    sft: Config = section(Config)  # type: ignore[assignment]
