"""The sections of which the configurations of stages are made (`stages`), a dataclass each.

`field` gives a field its default, the sentence that `--help` prints, what its strings are and what it may be; what has to fit
together within a section is its method `check`. Types of fields are bool, int, float, str, tuple[str, ...] and (tuples of)
sections, so that every leaf can be a command-line flag.
"""

import dataclasses
import math
from typing import Any

from annotated_types import Interval

from gemma_keras.config.errors import require
from gemma_keras.config.fields import (
    BELOW_ONE,
    COUNT,
    DECAY,
    ESCAPED_TEXTS,
    NOT_NEGATIVE,
    PATHS,
    POSITIVE,
    SHARE,
    field,
    section,
)

DTYPES = ("bfloat16", "float32")


def in_steps(value: float, total_steps: int) -> int:
    """What such a value is in steps of a run: below 1 it is a fraction of all of them.

    >>> in_steps(0.05, 3000), in_steps(40, 3000)
    (150, 40)
    """
    return int(value * total_steps) if value < 1 else int(value)


def _check_steps_or_fraction(config: Any, path: str, *names: str) -> None:
    """Values below 1 are fractions of all steps; from 1 on they are steps and so must be whole."""
    for name in names:
        value = getattr(config, name)
        require(
            value < 1 or value == int(value),
            f"{path}.{name} is {value:g}, but from 1 on it counts steps: give a whole number, or a fraction below 1",
        )


@dataclasses.dataclass(slots=True, kw_only=True)
class TokenizerConfig:
    path: str = field("", "SentencePiece model file; empty: the one beside the weights, else the builtin one or, for other data, one trained on the text corpora", PATHS)
    vocabulary_size: int = field(4096, "pieces of a tokenizer that is trained here", within=Interval(ge=512))


@dataclasses.dataclass(slots=True, kw_only=True)
class ModelConfig:
    architecture: str = field("gemma2_tiny", "named shape")
    weights: str = field("", "Hugging Face folder, Keras preset folder, GGUF file or export of an earlier stage; empty: random initialisation (not for fine-tuning)", PATHS)
    dtype: str = field("bfloat16", "of frozen weights and of matmuls: bfloat16 or float32; trainable weights are float32 always", within=DTYPES)
    attention: str = field("auto", "kernel: splash (TPU v4 and later), blockwise or reference; auto: splash where there is one, else blockwise", within=("auto", "splash", "blockwise", "reference"))


@dataclasses.dataclass(slots=True, kw_only=True)
class ParallelConfig:
    data: int = field(0, "devices along the rows of a batch, over which weights are stored in pieces, too; 0: chosen for the model and the devices", within=NOT_NEGATIVE)
    model: int = field(0, "devices along heads, ffn and vocabulary; 0: chosen for the model and the devices", within=NOT_NEGATIVE)
    shard_sequence: str = field("auto", "divide the residual stream over time along the model axis: yes, no, or auto (where that axis has several devices)", within=("auto", "yes", "no"))
    coordinator: str = field("", "host:port of process 0 where several processes train together; empty: one process")
    processes: int = field(1, "processes that train together", within=COUNT)
    process: int = field(0, "number of this process, from 0", within=NOT_NEGATIVE)

    def check(self, path: str) -> None:
        require(
            self.process < self.processes,
            f"{path}.process is {self.process}, but processes are counted from 0 and there are {self.processes}: "
            f"give a smaller one, or the right {path}.processes",
        )
        require(
            self.processes == 1 or bool(self.coordinator),
            f"{path}.processes is {self.processes}, but {path}.coordinator is empty: give host:port of process 0",
        )


@dataclasses.dataclass(slots=True, kw_only=True)
class CorpusConfig:
    name: str = field("", "entry of the table of sources, which fixes the raw schema")
    path: str = field("", "file, folder or glob, relative to data.root; empty: the entry's usual places under data.root", PATHS)
    hub: str = field("", "dataset id on the Hugging Face hub, read instead of a path")
    kinds: tuple[str, ...] = field((), "kinds of task to take from a corpus that holds several, as its rows name them; empty: the entry's own choice")
    group: str = field("", "stage that the corpus belongs to; sampling=random draws at random within a group only")
    share: float = field(0.0, "share of data.rows; 0 (for all corpora alike): every row is taken", within=SHARE)
    limit: int = field(0, "take at most this many rows, drawn by seed; 0: no limit", within=NOT_NEGATIVE)

    def check(self, path: str) -> None:
        require(self.name != "", f"{path}.name is empty, but it must name a source: give it, e.g. 'belle'")
        require(
            not (self.path and self.hub),
            f"{path} has both a path ({self.path!r}) and a hub id ({self.hub!r}), but it is read from one: drop one",
        )


@dataclasses.dataclass(slots=True, kw_only=True)
class EndpointConfig:
    url: str = field("", "base of an OpenAI-compatible API, such as http://localhost:8000/v1")
    model: str = field("", "name of the model that the endpoint serves")
    key_variable: str = field("OPENAI_API_KEY", "environment variable that holds the API key, where one is needed")
    concurrency: int = field(50, "requests under way at once", within=COUNT)
    retries: int = field(5, "further attempts after a failed one", within=NOT_NEGATIVE)
    timeout: float = field(60.0, "seconds to wait for an answer", within=POSITIVE)
    temperature: float = field(0.7, "of the answers", within=NOT_NEGATIVE)
    max_tokens: int = field(200, "longest answer in tokens", within=COUNT)


@dataclasses.dataclass(slots=True, kw_only=True)
class SystemPromptConfig:
    none: float = field(1.0, "share of conversations without a system turn", within=SHARE)
    fixed: float = field(0.0, "share of conversations with one of the general system prompts", within=SHARE)
    dynamic: float = field(0.0, "share of conversations whose system prompt a large model writes for them", within=SHARE)
    endpoint: EndpointConfig = section(EndpointConfig)
    cache: str = field("", "file that keeps the answers of the endpoint; empty: system_prompts.sqlite beside the prepared data", PATHS)
    dry_run: bool = field(False, "print how many calls and tokens the dynamic ones would take, and stop")

    def check(self, path: str) -> None:
        total = math.fsum((self.none, self.fixed, self.dynamic))
        require(
            math.isclose(total, 1, abs_tol=1e-6),
            f"the shares of {path} sum to {total:g}, but they must sum to 1: correct them",
        )


@dataclasses.dataclass(slots=True, kw_only=True)
class CleaningConfig:
    repair: bool = field(True, "mend mis-decoded text, line ends and control characters")
    residue: bool = field(True, "strip prompt templates that a corpus left inside its fields")
    duplicates: bool = field(True, "remove rows whose content is that of an earlier row but for blanks")
    near_duplicates: float = field(0.0, "remove rows whose 5-grams overlap with an earlier row's by this Jaccard similarity; 0: off", within=SHARE)
    contamination: tuple[str, ...] = field((), "evaluation corpora; rows that share an n-gram with one of their texts are removed")
    contamination_ngram: int = field(13, "length of these n-grams, in Chinese characters, words and numbers", within=Interval(ge=4))
    min_tokens: int = field(0, "remove rows whose turns (or text) have fewer tokens, system prompt and template left out", within=NOT_NEGATIVE)
    max_tokens: int = field(0, "remove rows whose turns (or text) have more tokens; 0: no limit, they are cut to data.sequence_length", within=NOT_NEGATIVE)


@dataclasses.dataclass(slots=True, kw_only=True)
class DataConfig:
    root: str = field("", "folder that holds the corpora; empty: the builtin corpus", PATHS)
    corpora: tuple[CorpusConfig, ...] = field((), "what is trained on")
    validation: tuple[CorpusConfig, ...] = field((), "what is held out; empty: validation_rows of the training corpora")
    validation_rows: int = field(0, "rows of the training corpora set apart when data.validation is empty, those that ask what few others do first; no other row that asks the same is trained on", within=NOT_NEGATIVE)
    earlier: tuple[str, ...] = field((), "prepared data of earlier stages (their workdir/data): a corpus that one of them holds is drawn from its rows", PATHS)
    rows: int = field(0, "training rows of the mixture, shared out by the corpora's shares; 0: all rows", within=NOT_NEGATIVE)
    sampling: str = field("exact", "exact (counts by largest remainder) or random (within a group rows are drawn from all of its corpora)", within=("exact", "random"))
    too_small: str = field("error", "a corpus smaller than its share: error, repeat (its rows occur several times) or less (take what it has)", within=("error", "repeat", "less"))
    missing: str = field("error", "a corpus without files: error, or builtin (the rows of this kind that come with the package)", within=("error", "builtin"))
    template: str = field("auto", "chat template; auto: the one that the weights come with, else gemmalm_zh")
    loss_on: str = field("response", "tokens that carry loss: response (the model's turns) or all; turns that a corpus marks as not to be learnt carry none", within=("response", "all"))
    system_prompts: SystemPromptConfig = section(SystemPromptConfig)
    cleaning: CleaningConfig = section(CleaningConfig)
    editions: int = field(1, "times that requests with random wording are drawn; epoch e trains on drawing e modulo this", within=Interval(ge=1, le=100))
    max_prompt_tokens: int = field(0, "preference pairs with a longer prompt are removed; 0: no limit", within=NOT_NEGATIVE)
    sequence_length: int = field(512, "tokens in a packed row (T)", within=Interval(ge=8))
    packing: bool = field(True, "several conversations in a row of T tokens; else each has a row of its own, filled up with padding")
    seed: int = field(0, "draws, order and packing", within=NOT_NEGATIVE)

    def check(self, path: str) -> None:
        """Shares are all 0 (everything is taken) or all above 0 with the sum 1."""
        for name, corpora in (("corpora", self.corpora), ("validation", self.validation)):
            shares = {f"{path}.{name}.{index}.share": corpus.share for index, corpus in enumerate(corpora)}
            zero = [place for place, share in shares.items() if share == 0]
            if len(zero) == len(shares):
                continue
            require(
                not zero, f"{', '.join(zero)} is 0 while other corpora have a share: give every corpus a share, or none"
            )
            total = math.fsum(shares.values())
            require(
                math.isclose(total, 1, abs_tol=1e-6),
                f"{', '.join(shares)} sum to {total:g}, but shares must sum to 1: correct them",
            )


@dataclasses.dataclass(slots=True, kw_only=True)
class AdapterConfig:
    method: str = field("none", "none (all weights are trained), lora or adalora", within=("none", "lora", "adalora"))
    targets: tuple[str, ...] = field(("query", "key", "value", "attention_output"), "projections that get an adapter")
    init_r: int = field(64, "rank of each matrix at the start (lora: the rank)", within=COUNT)
    target_r: int = field(32, "average rank of a matrix at the end, larger matrices counting for more", within=COUNT)
    alpha: float = field(32.0, "the delta is scaled by alpha / init_r", within=POSITIVE)
    dropout: float = field(0.05, "dropout on the adapter's input", within=BELOW_ONE)
    start: str = field("noise", "adalora: noise (lora_E zero, as PEFT) or zero_B (lora_B zero and lora_E one, as LoRA starts)", within=("noise", "zero_B"))
    beta1: float = field(0.85, "decay of the average importance", within=DECAY)
    beta2: float = field(0.85, "decay of the average uncertainty", within=DECAY)
    delta_t: float = field(10, "steps between allocations; below 1: a fraction of all steps", within=POSITIVE)
    tinit: float = field(0.05, "steps before budgeting; below 1: a fraction of all steps", within=NOT_NEGATIVE)
    tfinal: float = field(0.2, "steps after budgeting, a duration; below 1: a fraction of all steps; one step or more before budgeting ends must be scored", within=NOT_NEGATIVE)
    orth_reg_weight: float = field(0.5, "weight of the orthogonality penalty", within=NOT_NEGATIVE)
    peft_compatible: bool = field(False, "keep PEFT's final phase: pruned triplets stay in the penalty and are zeroed every step")

    def check(self, path: str) -> None:
        _check_steps_or_fraction(self, path, "tinit", "tfinal", "delta_t")
        if self.method == "none":
            return
        require(bool(self.targets), f"{path}.targets is empty, but {self.method} needs some: name projections")
        require(len(set(self.targets)) == len(self.targets), f"{path}.targets repeats a name: give each name once")
        if self.method == "adalora":
            self._check_adalora(path)

    def _check_adalora(self, path: str) -> None:
        require(
            self.target_r <= self.init_r,
            f"{path}.target_r is {self.target_r}, more than {path}.init_r ({self.init_r}), but ranks only shrink: "
            "lower target_r or raise init_r",
        )
        require(
            self.start == "noise" or self.orth_reg_weight == 0,
            f"{path}.orth_reg_weight is {self.orth_reg_weight:g} with {path}.start={self.start}, but the penalty would drive lora_B "
            "from 0 to norm 1 whatever the loss says: make it 0, or start from noise",
        )
        if self.tinit < 1 and self.tfinal < 1:
            total = self.tinit + self.tfinal
            require(
                total < 1,
                f"{path}.tinit and {path}.tfinal are {total:g} of all steps together, but budgeting between them needs "
                "some: make their sum less than 1",
            )


@dataclasses.dataclass(slots=True, kw_only=True)
class OptimConfig:
    name: str = field("adamw", "adamw or sgd", within=("adamw", "sgd"))
    learning_rate: float = field(5e-5, "peak learning rate", within=POSITIVE)
    warmup: float = field(0.03, "warm-up steps; below 1: a fraction of all steps", within=NOT_NEGATIVE)
    schedule: str = field("cosine", "after warm-up: cosine (to 0) or constant", within=("cosine", "constant"))
    beta1: float = field(0.9, "AdamW: decay of the first moment", within=BELOW_ONE)
    beta2: float = field(0.999, "AdamW: decay of the second moment", within=BELOW_ONE)
    epsilon: float = field(1e-8, "AdamW: epsilon", within=POSITIVE)
    weight_decay: float = field(0.0, "AdamW: decoupled weight decay of matrices", within=NOT_NEGATIVE)
    clip_norm: float = field(1.0, "global norm to which gradients are clipped; 0: no clipping", within=NOT_NEGATIVE)

    def check(self, path: str) -> None:
        _check_steps_or_fraction(self, path, "warmup")


@dataclasses.dataclass(slots=True, kw_only=True)
class TrainConfig:
    steps: int = field(0, "optimizer steps; 0: as many as train.tokens or train.epochs makes", within=NOT_NEGATIVE)
    tokens: int = field(0, "length of the run in tokens, the padding of packed rows among them, when train.steps is 0; 0: as many as train.epochs makes", within=NOT_NEGATIVE)
    epochs: float = field(1.0, "passes over the packed rows when train.steps and train.tokens are 0", within=POSITIVE)
    batch_rows: int = field(8, "packed rows in an optimizer step, all microbatches together, or in a batch of evaluation (B)", within=COUNT)
    accumulation: int = field(1, "microbatches in an optimizer step", within=COUNT)
    loss: str = field("supervised", "supervised, or preference (DPO on the pairs of data.corpora)", within=("supervised", "preference"))
    preference_beta: float = field(0.1, "of DPO: how strongly the policy is held to the model that it starts from", within=POSITIVE)
    remat: str = field("auto", "what the backward pass computes again: none, projections, matmul, attention or full; auto: the first of these that fits in memory", within=("auto", "none", "projections", "matmul", "attention", "full"))
    log_every: float = field(10, "steps between lines of metrics.jsonl, whose loss is the mean since the line before; below 1: a fraction of all steps", within=POSITIVE)
    eval_every: float = field(0.1, "steps between evaluations of the validation rows, or of a fixed part of them where all would take over 5 % of the time; below 1: a fraction of all steps; 0: at the end only", within=NOT_NEGATIVE)
    save_every: float = field(100, "steps between checkpoints; below 1: a fraction of all steps", within=POSITIVE)
    keep_checkpoints: int = field(2, "newest checkpoints kept", within=COUNT)
    seed: int = field(0, "initial weights, dropout and the order of packed rows", within=NOT_NEGATIVE)

    def check(self, path: str) -> None:
        require(
            self.batch_rows % self.accumulation == 0,
            f"{path}.batch_rows is {self.batch_rows}, which {path}.accumulation ({self.accumulation}) does not divide: "
            "make it a multiple",
        )
        _check_steps_or_fraction(self, path, "log_every", "eval_every", "save_every")


@dataclasses.dataclass(slots=True, kw_only=True)
class SamplingConfig:
    max_new_tokens: int = field(512, "tokens generated at most", within=COUNT)
    temperature: float = field(0.7, "0: greedy", within=NOT_NEGATIVE)
    top_k: int = field(0, "keep the k most likely tokens; 0: all", within=NOT_NEGATIVE)
    top_p: float = field(0.95, "keep the most likely tokens up to this probability mass; 1: all", within=Interval(gt=0, le=1))
    min_p: float = field(0.0, "drop tokens less likely than this share of the most likely one's probability; 0: none", within=BELOW_ONE)
    repetition_penalty: float = field(1.1, "divides the logits of tokens already seen, those of the prompt among them; 1: none", within=POSITIVE)
    presence_penalty: float = field(0.0, "taken off the logits of tokens that the answer has already", within=Interval(ge=-2, le=2))
    frequency_penalty: float = field(0.0, "the same, once for each time that the answer has them", within=Interval(ge=-2, le=2))
    stop: tuple[str, ...] = field((), "texts that end an answer, left out of it; a flag spells a line end \\n, a tab \\t, a carriage return \\r and a backslash before one of these letters \\\\", ESCAPED_TEXTS)
    num_beams: int = field(1, "beam search with this many beams, without random draws; 1: none", within=COUNT)
    length_penalty: float = field(1.0, "beam search: exponent of the length that a beam's log-probability is divided by", within=Interval())
    penalty_alpha: float = field(0.0, "contrastive search: weight of the likeness to earlier tokens, among the top_k likely ones; 0: none", within=SHARE)
    seed: int = field(0, "random draws", within=NOT_NEGATIVE)


@dataclasses.dataclass(slots=True, kw_only=True)
class InferenceConfig:
    max_rows: int = field(32, "answers that are generated side by side", within=COUNT)
    weights: str = field("auto", "kept as: auto (model.dtype) or int8 (half the memory of bfloat16, a little less exact)", within=("auto", "int8"))
    cache: str = field("auto", "keys and values kept as: auto (model.dtype) or int8", within=("auto", "int8"))
    prefix_tokens: int = field(4096, "tokens of prompts' beginnings that are kept for prompts that begin alike; 0: none", within=NOT_NEGATIVE)


@dataclasses.dataclass(slots=True, kw_only=True)
class SolverConfig:
    name: str = field("adaptive", "who asks the model, in which steps")
    input: str = field("", "file of questions: one a line; or JSON, JSON lines, csv, tsv or parquet with question (and choices or A, B, ..., answer, id); empty: config.questions, else standard input", PATHS)
    language: str = field("zh", "of the prompts: zh or en", within=("zh", "en"))
    prompts: str = field("", "TOML or JSON file of prompts that take the place of those of the same name", PATHS)
    constrained: str = field("no", "hold plans, scores and letters to their form while they are generated: no, list (a plan is a numbered list) or json (a plan is an object)", within=("no", "list", "json"))
    plan_temperature: float = field(0.3, "of decompositions; answers have sampling.temperature", within=NOT_NEGATIVE)
    summary_temperature: float = field(0.5, "of the answer that is made from those to the sub-questions", within=NOT_NEGATIVE)
    judge_temperature: float = field(0.3, "of verdicts and scores of complexity", within=NOT_NEGATIVE)
    rewrites: int = field(1, "of an answer by its verdicts at most; each is judged again", within=COUNT)
    samples: int = field(5, "answers that are sampled where answers are compared: self_consistency, each solver of escalation, candidates of backward_verification", within=COUNT)
    sampled: str = field("normal", "solver whose answers self_consistency and backward_verification sample")
    pipeline: tuple[str, ...] = field(("normal", "least_to_most", "enhanced"), "escalation: solvers in the order in which they are tried")
    threshold: float = field(0.6, "escalation: share of samples with the same answer at which no further solver is tried", within=SHARE)
    conditions: int = field(4, "backward_verification: numbers of a question that are masked at most, each in turn", within=COUNT)
    checks: int = field(1, "backward_verification: times that each masked number (or the conclusion of a question without any) is asked for", within=COUNT)
    max_calls: int = field(0, "calls of the model for a question; 0: no limit. Beyond a limit the best answer so far counts", within=NOT_NEGATIVE)
    max_tokens: int = field(0, "tokens of prompts and answers for a question, after which nothing more is asked; 0: no limit", within=NOT_NEGATIVE)
    max_seconds: float = field(0.0, "time for a question, after which nothing more is asked; 0: no limit", within=NOT_NEGATIVE)
    batch_questions: int = field(32, "questions that are solved side by side", within=COUNT)
    show: str = field("trace", "printed for each question: trace, answer or nothing", within=("trace", "answer", "nothing"))

    def check(self, path: str) -> None:
        require(bool(self.pipeline), f"{path}.pipeline is empty, but escalation needs solvers: name some")


@dataclasses.dataclass(slots=True, kw_only=True)
class ExportConfig:
    dtype: str = field("bfloat16", "of the exported weights: bfloat16 or float32", within=DTYPES)
    shard_megabytes: int = field(4000, "size at which a new safetensors file is begun", within=COUNT)
