"""Checks of a configuration's values: ranges, allowed names, and how fields fit together.

Types are settled before (`serialization.from_dict`); names that later packages own (architectures, templates) are
repeated here, so that a typing error ends a run at once, and a test holds both lists together.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from gemma_keras.config import schema
from gemma_keras.config.fields import leaves, sections
from gemma_keras.config.schema import require
from gemma_keras.config.values import check_texts

ARCHITECTURES = (
    "gemma2_tiny",
    "gemma2_43m",
    "gemma2_2b",
    "gemma2_9b",
    "gemma2_27b",
    "gemma_2b",
    "gemma_7b",
)
TEMPLATES = ("auto", "gemmalm_zh", "gemma", "passage", "instruction")
TARGETS = ("query", "key", "value", "attention_output", "ffw_gating", "ffw_gating_2", "ffw_linear")
DTYPES = ("bfloat16", "float32")
# A solver, and those that are made of others.
SINGLE_SOLVERS = ("normal", "least_to_most", "self_verification", "enhanced", "simplified_enhanced", "adaptive")
SOLVERS = (*SINGLE_SOLVERS, "self_consistency", "escalation", "backward_verification")

CHOICES: dict[tuple[type, str], tuple[str, ...]] = {
    (schema.ModelConfig, "architecture"): ARCHITECTURES,
    (schema.ModelConfig, "dtype"): DTYPES,
    (schema.ModelConfig, "attention"): ("auto", "splash", "blockwise", "reference"),
    (schema.ParallelConfig, "shard_sequence"): ("auto", "yes", "no"),
    (schema.TrainConfig, "loss"): ("supervised", "preference"),
    (schema.TrainConfig, "remat"): ("auto", "none", "matmul", "attention", "full"),
    (schema.DataConfig, "template"): TEMPLATES,
    (schema.DataConfig, "loss_on"): ("response", "all"),
    (schema.DataConfig, "sampling"): ("exact", "random"),
    (schema.DataConfig, "too_small"): ("error", "repeat", "less"),
    (schema.DataConfig, "missing"): ("error", "builtin"),
    (schema.AdapterConfig, "method"): ("none", "lora", "adalora"),
    (schema.OptimConfig, "name"): ("adamw", "sgd"),
    (schema.OptimConfig, "schedule"): ("cosine", "constant"),
    (schema.InferenceConfig, "weights"): ("auto", "int8"),
    (schema.InferenceConfig, "cache"): ("auto", "int8"),
    (schema.ExportConfig, "dtype"): DTYPES,
    (schema.SolverConfig, "name"): SOLVERS,
    (schema.SolverConfig, "language"): ("zh", "en"),
    (schema.SolverConfig, "constrained"): ("no", "list", "json"),
    (schema.SolverConfig, "sampled"): SINGLE_SOLVERS,
    (schema.SolverConfig, "show"): ("trace", "answer", "nothing"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """An interval of numbers; `open_low` and `open_high` leave the bound itself out."""

    low: float = 0.0
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"{'more than' if self.open_low else 'at least'} {self.low:g}"
        if self.high == math.inf:
            return low
        return f"{low} and {'less than' if self.open_high else 'at most'} {self.high:g}"


NOT_NEGATIVE = Range()
POSITIVE = Range(open_low=True)
COUNT = Range(low=1)
SHARE = Range(high=1)
BELOW_ONE = Range(high=1, open_high=True)
DECAY = Range(high=1, open_low=True, open_high=True)

RANGES: dict[type, dict[str, Range]] = {
    schema.TokenizerConfig: {"vocabulary_size": Range(low=512)},
    schema.CorpusConfig: {"share": SHARE, "limit": NOT_NEGATIVE},
    schema.EndpointConfig: {
        "concurrency": COUNT,
        "retries": NOT_NEGATIVE,
        "timeout": POSITIVE,
        "temperature": NOT_NEGATIVE,
        "max_tokens": COUNT,
    },
    schema.SystemPromptConfig: {"none": SHARE, "fixed": SHARE, "dynamic": SHARE},
    schema.CleaningConfig: {
        "near_duplicates": SHARE,
        "contamination_ngram": Range(low=4),
        "min_tokens": NOT_NEGATIVE,
        "max_tokens": NOT_NEGATIVE,
    },
    schema.DataConfig: {
        "validation_rows": NOT_NEGATIVE,
        "rows": NOT_NEGATIVE,
        "editions": Range(low=1, high=100),
        "max_prompt_tokens": NOT_NEGATIVE,
        "sequence_length": Range(low=8),
        "seed": NOT_NEGATIVE,
    },
    schema.AdapterConfig: {
        "init_r": COUNT,
        "target_r": COUNT,
        "alpha": POSITIVE,
        "dropout": BELOW_ONE,
        "beta1": DECAY,
        "beta2": DECAY,
        "delta_t": COUNT,
        "tinit": NOT_NEGATIVE,
        "tfinal": NOT_NEGATIVE,
        "orth_reg_weight": NOT_NEGATIVE,
    },
    schema.OptimConfig: {
        "learning_rate": POSITIVE,
        "warmup": NOT_NEGATIVE,
        "beta1": BELOW_ONE,
        "beta2": BELOW_ONE,
        "epsilon": POSITIVE,
        "weight_decay": NOT_NEGATIVE,
        "clip_norm": NOT_NEGATIVE,
    },
    schema.TrainConfig: {
        "steps": NOT_NEGATIVE,
        "epochs": POSITIVE,
        "batch_rows": COUNT,
        "accumulation": COUNT,
        "preference_beta": POSITIVE,
        "log_every": COUNT,
        "eval_every": NOT_NEGATIVE,
        "save_every": COUNT,
        "keep_checkpoints": COUNT,
        "seed": NOT_NEGATIVE,
    },
    schema.ParallelConfig: {"data": NOT_NEGATIVE, "model": NOT_NEGATIVE, "processes": COUNT, "process": NOT_NEGATIVE},
    schema.SamplingConfig: {
        "max_new_tokens": COUNT,
        "temperature": NOT_NEGATIVE,
        "top_k": NOT_NEGATIVE,
        "top_p": Range(high=1, open_low=True),
        "min_p": BELOW_ONE,
        "repetition_penalty": POSITIVE,
        "presence_penalty": Range(low=-2, high=2),
        "frequency_penalty": Range(low=-2, high=2),
        "num_beams": COUNT,
        "length_penalty": Range(low=-math.inf),
        "penalty_alpha": SHARE,
        "seed": NOT_NEGATIVE,
    },
    schema.SolverConfig: {
        "plan_temperature": NOT_NEGATIVE,
        "summary_temperature": NOT_NEGATIVE,
        "judge_temperature": NOT_NEGATIVE,
        "rewrites": COUNT,
        "samples": COUNT,
        "threshold": SHARE,
        "conditions": COUNT,
        "checks": COUNT,
        "max_calls": NOT_NEGATIVE,
        "max_tokens": NOT_NEGATIVE,
        "max_seconds": NOT_NEGATIVE,
        "batch_questions": COUNT,
    },
    schema.InferenceConfig: {"max_rows": COUNT, "prefix_tokens": NOT_NEGATIVE},
    schema.ExportConfig: {"shard_megabytes": COUNT},
}


def validate(config: Any, path: str = "config") -> None:
    """Checks every section of a `Config` or `PipelineConfig`.

    Raises:
        UserError: names the first field at fault, its value, what is allowed and what to do.
    """
    for leaf in leaves(config):
        _check_leaf(f"{path}.{leaf.path}", type(leaf.section), leaf.name, leaf.value)
        check_texts(f"{path}.{leaf.path}", leaf)
    for section_path, section in sections(config, path):
        check = CHECKS.get(type(section))
        if check is not None:
            check(section, section_path)


def _check_leaf(path: str, section: type, name: str, value: Any) -> None:
    if type(value) in (int, float):
        allowed = RANGES[section][name]
        require(
            math.isfinite(value) and value in allowed,
            f"{path} is {value}, but it must be {allowed}: correct the value",
        )
    elif (section, name) in CHOICES:
        names = CHOICES[section, name]
        require(value in names, f"{path} is {value!r}, but it must be one of {', '.join(names)}: choose one of them")


def _check_data(data: schema.DataConfig, path: str) -> None:
    for field in ("corpora", "validation"):
        corpora: tuple[schema.CorpusConfig, ...] = getattr(data, field)
        _check_shares({f"{path}.{field}.{index}.share": corpus.share for index, corpus in enumerate(corpora)})


def _check_shares(shares: dict[str, float]) -> None:
    """Shares are all 0 (everything is taken) or all above 0 with the sum 1."""
    zero = [path for path, share in shares.items() if share == 0]
    if len(zero) == len(shares):
        return
    require(not zero, f"{', '.join(zero)} is 0 while other corpora have a share: give every corpus a share, or none")
    total = math.fsum(shares.values())
    require(
        math.isclose(total, 1, abs_tol=1e-6),
        f"{', '.join(shares)} sum to {total:g}, but shares must sum to 1: correct them",
    )


def _check_corpus(corpus: schema.CorpusConfig, path: str) -> None:
    require(corpus.name != "", f"{path}.name is empty, but it must name a source: give it, e.g. 'belle'")
    require(
        not (corpus.path and corpus.hub),
        f"{path} has both a path ({corpus.path!r}) and a hub id ({corpus.hub!r}), but it is read from one: drop one",
    )


def _check_system_prompts(prompts: schema.SystemPromptConfig, path: str) -> None:
    total = math.fsum((prompts.none, prompts.fixed, prompts.dynamic))
    require(
        math.isclose(total, 1, abs_tol=1e-6),
        f"the shares of {path} sum to {total:g}, but they must sum to 1: correct them",
    )


def _check_steps_or_fraction(section: Any, path: str, *names: str) -> None:
    """Values below 1 are fractions of all steps; from 1 on they are steps and so must be whole."""
    for name in names:
        value = getattr(section, name)
        require(
            value < 1 or value == int(value),
            f"{path}.{name} is {value:g}, but from 1 on it counts steps: give a whole number, or a fraction below 1",
        )


def _check_adapter(adapter: schema.AdapterConfig, path: str) -> None:
    _check_steps_or_fraction(adapter, path, "tinit", "tfinal")
    if adapter.method == "none":
        return
    require(bool(adapter.targets), f"{path}.targets is empty, but {adapter.method} needs some: name projections")
    for target in adapter.targets:
        require(
            target in TARGETS,
            f"{path}.targets holds {target!r}, but targets must be among {', '.join(TARGETS)}: choose from them",
        )
    require(len(set(adapter.targets)) == len(adapter.targets), f"{path}.targets repeats a name: give each name once")
    if adapter.method == "adalora":
        _check_adalora(adapter, path)


def _check_adalora(adapter: schema.AdapterConfig, path: str) -> None:
    require(
        adapter.target_r <= adapter.init_r,
        f"{path}.target_r is {adapter.target_r}, more than {path}.init_r ({adapter.init_r}), but ranks only shrink: "
        "lower target_r or raise init_r",
    )
    if adapter.tinit < 1 and adapter.tfinal < 1:
        total = adapter.tinit + adapter.tfinal
        require(
            total < 1,
            f"{path}.tinit and {path}.tfinal are {total:g} of all steps together, but budgeting between them needs "
            "some: make their sum less than 1",
        )


def _check_optim(optim: schema.OptimConfig, path: str) -> None:
    _check_steps_or_fraction(optim, path, "warmup")


def _check_train(train: schema.TrainConfig, path: str) -> None:
    require(
        train.batch_rows % train.accumulation == 0,
        f"{path}.batch_rows is {train.batch_rows}, which {path}.accumulation ({train.accumulation}) does not divide: "
        "make it a multiple",
    )


def _check_parallel(parallel: schema.ParallelConfig, path: str) -> None:
    require(
        parallel.process < parallel.processes,
        f"{path}.process is {parallel.process}, but processes are counted from 0 and there are {parallel.processes}: "
        f"give a smaller one, or the right {path}.processes",
    )
    require(
        parallel.processes == 1 or bool(parallel.coordinator),
        f"{path}.processes is {parallel.processes}, but {path}.coordinator is empty: give host:port of process 0",
    )


def _check_solver(solver: schema.SolverConfig, path: str) -> None:
    require(bool(solver.pipeline), f"{path}.pipeline is empty, but escalation needs solvers: name some")
    for name in solver.pipeline:
        require(
            name in SINGLE_SOLVERS,
            f"{path}.pipeline holds {name!r}, but its solvers must be among {', '.join(SINGLE_SOLVERS)}: choose from them",
        )


def _check_phases(config: schema.Config, path: str) -> None:
    """With a given number of steps, warm-up and the phases of AdaLoRA must leave some in between."""
    steps = config.train.steps
    if steps == 0:
        return
    warmup, only = _in_steps(config.optim.warmup, steps), f"but {path}.train.steps is only {steps}"
    require(warmup < steps, f"{path}.optim.warmup is {warmup} steps, {only}: lower the warm-up")
    if config.adapter.method == "adalora":
        tinit, tfinal = (_in_steps(value, steps) for value in (config.adapter.tinit, config.adapter.tfinal))
        require(
            tinit + tfinal < steps,
            f"{path}.adapter.tinit and {path}.adapter.tfinal make {tinit + tfinal} steps, {only}: lower them "
            "or train longer",
        )
        require(
            steps - tfinal > 1 or config.adapter.target_r == config.adapter.init_r,
            f"{path}.adapter.tfinal is {tfinal} of {steps} steps, so that ranks would be fixed before any was scored: "
            "lower it or train longer",
        )


def _in_steps(value: float, steps: int) -> int:
    return int(value * steps) if value < 1 else int(value)


CHECKS: dict[type, Callable[[Any, str], None]] = {
    schema.DataConfig: _check_data,
    schema.CorpusConfig: _check_corpus,
    schema.SystemPromptConfig: _check_system_prompts,
    schema.AdapterConfig: _check_adapter,
    schema.OptimConfig: _check_optim,
    schema.TrainConfig: _check_train,
    schema.ParallelConfig: _check_parallel,
    schema.SolverConfig: _check_solver,
    schema.Config: _check_phases,
}
