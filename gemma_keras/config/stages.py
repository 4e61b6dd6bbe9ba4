"""What each stage reads: one configuration a stage, made of shared sections."""

import dataclasses

from gemma_keras.config.errors import require
from gemma_keras.config.fields import COUNT, PATHS, TEXTS, field, section
from gemma_keras.config.sections import (
    AdapterConfig,
    DataConfig,
    ExportConfig,
    InferenceConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    SamplingConfig,
    SolverConfig,
    TokenizerConfig,
    TrainConfig,
    in_steps,
)

# What reading a corpus, without preparing it for training, takes of `CorpusConfig`.
_SOURCES = ("root", "corpora.name", "corpora.path", "corpora.hub", "corpora.kinds")


@dataclasses.dataclass(slots=True, kw_only=True)
class StageConfig:
    """What every stage's configuration is."""


@dataclasses.dataclass(slots=True, kw_only=True)
class DescribeDataConfig(StageConfig):
    data: DataConfig = section(DataConfig, *_SOURCES)


@dataclasses.dataclass(slots=True, kw_only=True)
class GlueConfig(StageConfig):
    data: DataConfig = section(DataConfig, "root", "corpora.name")


@dataclasses.dataclass(slots=True, kw_only=True)
class PrepareConfig(StageConfig):
    tokenizer: TokenizerConfig = section(TokenizerConfig)
    model: ModelConfig = section(ModelConfig, "weights")
    data: DataConfig = section(DataConfig, but=("loss_on",))


@dataclasses.dataclass(slots=True, kw_only=True)
class StepConfig(StageConfig):
    """What a train step is made of."""

    model: ModelConfig = section(ModelConfig)
    data: DataConfig = section(DataConfig)
    adapter: AdapterConfig = section(AdapterConfig)
    optim: OptimConfig = section(OptimConfig)
    train: TrainConfig = section(TrainConfig)
    parallel: ParallelConfig = section(ParallelConfig)

    def given_steps(self) -> int:
        """Optimizer steps of the run; 0 where only the data says how many."""
        if self.train.steps or not self.train.tokens:
            return self.train.steps
        return max(1, round(self.train.tokens / (self.train.batch_rows * self.data.sequence_length)))

    def check(self, path: str) -> None:
        """With a given number of steps, warm-up and the phases of AdaLoRA must leave some in between."""
        steps = self.given_steps()
        if steps == 0:
            return
        warmup, only = in_steps(self.optim.warmup, steps), f"but the run has only {steps} steps"
        require(warmup < steps, f"{path}.optim.warmup is {warmup} steps, {only}: lower the warm-up")
        if self.adapter.method == "adalora":
            tinit, tfinal = (in_steps(value, steps) for value in (self.adapter.tinit, self.adapter.tfinal))
            require(
                tinit + tfinal < steps,
                f"{path}.adapter.tinit and {path}.adapter.tfinal make {tinit + tfinal} steps, {only}: lower them "
                "or train longer",
            )
            require(
                steps - tfinal > 1 or self.adapter.target_r == self.adapter.init_r,
                f"{path}.adapter.tfinal is {tfinal} of {steps} steps, so that ranks would be fixed before any was "
                "scored: lower it or train longer",
            )


@dataclasses.dataclass(slots=True, kw_only=True)
class PreflightConfig(StepConfig):
    data: DataConfig = section(DataConfig, "corpora.name", "loss_on", "sequence_length")
    adapter: AdapterConfig = section(AdapterConfig, but=("delta_t",))
    train: TrainConfig = section(TrainConfig, but=("log_every", "eval_every", "save_every", "keep_checkpoints"))
    parallel: ParallelConfig = section(ParallelConfig, "data", "model", "shard_sequence")
    sampling: SamplingConfig = section(SamplingConfig, "max_new_tokens")
    inference: InferenceConfig = section(InferenceConfig, "max_rows", "weights", "cache")
    prompt_tokens: int = field(512, "tokens of each prompt, where a step of decoding is compiled", within=COUNT)


@dataclasses.dataclass(slots=True, kw_only=True)
class TrainingConfig(StepConfig):
    train: TrainConfig = section(TrainConfig, but=("preference_beta",))
    tokenizer: TokenizerConfig = section(TokenizerConfig)
    export: ExportConfig = section(ExportConfig)


@dataclasses.dataclass(slots=True, kw_only=True)
class PretrainConfig(TrainingConfig):
    adapter: AdapterConfig = section(AdapterConfig, "method")  # which can only be none, and any other one is told


@dataclasses.dataclass(slots=True, kw_only=True)
class SftConfig(TrainingConfig):
    pass


@dataclasses.dataclass(slots=True, kw_only=True)
class AnsweringConfig(StageConfig):
    """A model that answers."""

    tokenizer: TokenizerConfig = section(TokenizerConfig, "path")
    model: ModelConfig = section(ModelConfig, "weights", "dtype")
    data: DataConfig = section(DataConfig, "template")
    parallel: ParallelConfig = section(ParallelConfig, "data", "model")
    inference: InferenceConfig = section(InferenceConfig)


@dataclasses.dataclass(slots=True, kw_only=True)
class EvaluateConfig(AnsweringConfig):
    model: ModelConfig = section(ModelConfig, "weights", "dtype", "attention")
    data: DataConfig = section(DataConfig, but=("loss_on",))
    train: TrainConfig = section(TrainConfig, "batch_rows")
    parallel: ParallelConfig = section(ParallelConfig, "data", "model", "shard_sequence")
    inference: InferenceConfig = section(InferenceConfig, "weights")


@dataclasses.dataclass(slots=True, kw_only=True)
class ChatConfig(AnsweringConfig):
    sampling: SamplingConfig = section(SamplingConfig)
    questions: tuple[str, ...] = field(
        (), "questions to answer; empty: a conversation; a flag is one question, as it is", TEXTS
    )


@dataclasses.dataclass(slots=True, kw_only=True)
class SolveConfig(AnsweringConfig):
    sampling: SamplingConfig = section(  # what a call of a solver takes (`inference.language_model.Ask`)
        SamplingConfig, "max_new_tokens", "temperature", "top_p", "repetition_penalty", "seed"
    )
    solver: SolverConfig = section(SolverConfig)
    questions: tuple[str, ...] = field((), "questions to answer; a flag is one question, as it is", TEXTS)


@dataclasses.dataclass(slots=True, kw_only=True)
class LetterPairsConfig(AnsweringConfig):
    data: DataConfig = section(DataConfig, *_SOURCES, "missing", "template", "seed")
    sampling: SamplingConfig = section(SamplingConfig)


@dataclasses.dataclass(slots=True, kw_only=True)
class ExportStageConfig(StageConfig):
    tokenizer: TokenizerConfig = section(TokenizerConfig, "path")
    model: ModelConfig = section(ModelConfig, "weights")
    data: DataConfig = section(DataConfig, "template")
    export: ExportConfig = section(ExportConfig)


@dataclasses.dataclass(slots=True, kw_only=True)
class PipelineSftConfig(SftConfig):
    """The fine-tuning, and how the model then answers the questions that show what it learnt."""

    sampling: SamplingConfig = section(SamplingConfig)
    inference: InferenceConfig = section(InferenceConfig)
    questions: tuple[str, ...] = field(
        (), "questions that the tuned model answers; a flag is one question, as it is", TEXTS
    )


@dataclasses.dataclass(slots=True, kw_only=True)
class PipelineDataConfig:
    root: str = field("", "folder that holds the corpora, given to every stage; empty: the builtin corpus", PATHS)


@dataclasses.dataclass(slots=True, kw_only=True)
class PipelineConfig(StageConfig):
    """The whole flow: pretrain, sft, evaluation, samples, export, verification."""

    data: PipelineDataConfig = section(PipelineDataConfig)
    pretrain: PretrainConfig = section(PretrainConfig)
    sft: PipelineSftConfig = section(PipelineSftConfig)


# By script.
STAGES: dict[str, type[StageConfig]] = {
    "prepare_data": PrepareConfig,
    "describe_data": DescribeDataConfig,
    "prepare_glue": GlueConfig,
    "make_letter_pairs": LetterPairsConfig,
    "pretrain": PretrainConfig,
    "train_sft": SftConfig,
    "preflight": PreflightConfig,
    "evaluate": EvaluateConfig,
    "chat": ChatConfig,
    "solve": SolveConfig,
    "export": ExportStageConfig,
    "pipeline": PipelineConfig,
}
# Fields of today by their former names.
RENAMED: dict[type[StageConfig], dict[str, str]] = {LetterPairsConfig: {"train.batch_rows": "inference.max_rows"}}
# Those that load a model with its tokenizer and template.
ModelStage = PrepareConfig | TrainingConfig | AnsweringConfig | ExportStageConfig
