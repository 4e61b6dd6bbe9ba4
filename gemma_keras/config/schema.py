"""Typed configuration of every stage.

One dataclass a section; `field(doc)` carries the sentence that `--help` prints, and what the strings of a field are. A stage
reads only the sections it needs. Field types are bool, int, float, str, tuple[str, ...] and (tuples of) nested sections, so that every
leaf can be a command-line flag.
"""

import dataclasses
from typing import Any

from gemma_keras.config.errors import UserError
from gemma_keras.config.fields import ESCAPED_TEXTS, NAMES, PATHS, TEXTS


def field(default: Any, doc: str, holds: str = NAMES) -> Any:
    """A dataclass field with its default, the sentence that `--help` shows for it, and what its strings are (`Leaf.holds`)."""
    metadata = {"doc": doc, "holds": holds}
    if dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=type(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(slots=True, kw_only=True)
class TokenizerConfig:
    path: str = field("", "SentencePiece model file; empty: the one beside the weights, else the builtin one or, for other data, one trained on the text corpora", PATHS)
    vocabulary_size: int = field(4096, "pieces of a tokenizer that is trained here")


@dataclasses.dataclass(slots=True, kw_only=True)
class ModelConfig:
    architecture: str = field("gemma2_tiny", "named shape: gemma2_tiny, gemma2_43m, gemma2_2b, gemma2_9b, gemma2_27b, gemma_2b, gemma_7b")
    weights: str = field("", "Hugging Face folder, Keras preset folder or export of an earlier stage; empty: random initialisation (not for fine-tuning)", PATHS)
    dtype: str = field("bfloat16", "of frozen weights and of matmuls: bfloat16 or float32; trainable weights are float32 always")
    attention: str = field("auto", "kernel: splash (TPU v4 and later), blockwise or reference; auto: splash where there is one, else blockwise")


@dataclasses.dataclass(slots=True, kw_only=True)
class ParallelConfig:
    data: int = field(0, "devices along the rows of a batch, over which weights are stored in pieces, too; 0: chosen for the model and the devices")
    model: int = field(0, "devices along heads, ffn and vocabulary; 0: chosen for the model and the devices")
    shard_sequence: str = field("auto", "divide the residual stream over time along the model axis: yes, no, or auto (where that axis has several devices)")
    coordinator: str = field("", "host:port of process 0 where several processes train together; empty: one process")
    processes: int = field(1, "processes that train together")
    process: int = field(0, "number of this process, from 0")


@dataclasses.dataclass(slots=True, kw_only=True)
class CorpusConfig:
    name: str = field("", "entry of the table of sources, which fixes the raw schema")
    path: str = field("", "file, folder or glob, relative to data.root; empty: the entry's usual places under data.root", PATHS)
    hub: str = field("", "dataset id on the Hugging Face hub, read instead of a path")
    kinds: tuple[str, ...] = field((), "kinds of task to take from a corpus that holds several, as its rows name them; empty: the entry's own choice")
    group: str = field("", "stage that the corpus belongs to; sampling=random draws at random within a group only")
    share: float = field(0.0, "share of data.rows; 0 (for all corpora alike): every row is taken")
    limit: int = field(0, "take at most this many rows, drawn by seed; 0: no limit")


@dataclasses.dataclass(slots=True, kw_only=True)
class EndpointConfig:
    url: str = field("", "base of an OpenAI-compatible API, such as http://localhost:8000/v1")
    model: str = field("", "name of the model that the endpoint serves")
    key_variable: str = field("OPENAI_API_KEY", "environment variable that holds the API key, where one is needed")
    concurrency: int = field(50, "requests under way at once")
    retries: int = field(5, "further attempts after a failed one")
    timeout: float = field(60.0, "seconds to wait for an answer")
    temperature: float = field(0.7, "of the answers")
    max_tokens: int = field(200, "longest answer in tokens")


@dataclasses.dataclass(slots=True, kw_only=True)
class SystemPromptConfig:
    none: float = field(1.0, "share of conversations without a system turn")
    fixed: float = field(0.0, "share of conversations with one of the general system prompts")
    dynamic: float = field(0.0, "share of conversations whose system prompt a large model writes for them")
    endpoint: EndpointConfig = field(EndpointConfig(), "who writes the dynamic ones")
    cache: str = field("", "file that keeps the answers of the endpoint; empty: system_prompts.sqlite beside the prepared data", PATHS)
    dry_run: bool = field(False, "print how many calls and tokens the dynamic ones would take, and stop")


@dataclasses.dataclass(slots=True, kw_only=True)
class CleaningConfig:
    repair: bool = field(True, "mend mis-decoded text, line ends and control characters")
    residue: bool = field(True, "strip prompt templates that a corpus left inside its fields")
    duplicates: bool = field(True, "remove rows whose content is that of an earlier row but for blanks")
    near_duplicates: float = field(0.0, "remove rows whose 5-grams overlap with an earlier row's by this Jaccard similarity; 0: off")
    contamination: tuple[str, ...] = field((), "evaluation corpora; rows that share an n-gram with one of their texts are removed")
    contamination_ngram: int = field(13, "length of these n-grams, in Chinese characters, words and numbers")
    min_tokens: int = field(0, "remove rows whose turns (or text) have fewer tokens, system prompt and template left out")
    max_tokens: int = field(0, "remove rows whose turns (or text) have more tokens; 0: no limit, they are cut to data.sequence_length")


@dataclasses.dataclass(slots=True, kw_only=True)
class DataConfig:
    root: str = field("", "folder that holds the corpora; empty: the builtin corpus", PATHS)
    corpora: tuple[CorpusConfig, ...] = field((), "what is trained on")
    validation: tuple[CorpusConfig, ...] = field((), "what is held out; empty: validation_rows of the training corpora")
    validation_rows: int = field(0, "rows of the training corpora set apart when data.validation is empty, those that ask what few others do first; no other row that asks the same is trained on")
    earlier: tuple[str, ...] = field((), "prepared data of earlier stages (their workdir/data): a corpus that one of them holds is drawn from its rows", PATHS)
    rows: int = field(0, "training rows of the mixture, shared out by the corpora's shares; 0: all rows")
    sampling: str = field("exact", "exact (counts by largest remainder) or random (within a group rows are drawn from all of its corpora)")
    too_small: str = field("error", "a corpus smaller than its share: error, repeat (its rows occur several times) or less (take what it has)")
    missing: str = field("error", "a corpus without files: error, or builtin (the rows of this kind that come with the package)")
    template: str = field("auto", "chat template: gemmalm_zh, gemma, passage or instruction; auto: the one that the weights come with, else gemmalm_zh")
    loss_on: str = field("response", "tokens that carry loss: response (the model's turns) or all; turns that a corpus marks as not to be learnt carry none")
    system_prompts: SystemPromptConfig = field(SystemPromptConfig(), "shares of system prompts by kind")
    cleaning: CleaningConfig = field(CleaningConfig(), "rules that mend and remove rows")
    editions: int = field(1, "times that requests with random wording are drawn; epoch e trains on drawing e modulo this")
    max_prompt_tokens: int = field(0, "preference pairs with a longer prompt are removed; 0: no limit")
    sequence_length: int = field(512, "tokens in a packed row (T)")
    seed: int = field(0, "draws, order and packing")


@dataclasses.dataclass(slots=True, kw_only=True)
class AdapterConfig:
    method: str = field("none", "none (all weights are trained), lora or adalora")
    targets: tuple[str, ...] = field(("query", "key", "value", "attention_output"), "projections that get an adapter")
    init_r: int = field(64, "rank of each matrix at the start (lora: the rank)")
    target_r: int = field(32, "average rank of a matrix at the end")
    alpha: float = field(32.0, "the delta is scaled by alpha / init_r")
    dropout: float = field(0.05, "dropout on the adapter's input")
    beta1: float = field(0.85, "decay of the average importance")
    beta2: float = field(0.85, "decay of the average uncertainty")
    delta_t: int = field(10, "steps between allocations")
    tinit: float = field(0.05, "steps before budgeting; below 1: a fraction of all steps")
    tfinal: float = field(0.2, "steps after budgeting, a duration; below 1: a fraction of all steps; one step or more before budgeting ends must be scored")
    orth_reg_weight: float = field(0.5, "weight of the orthogonality penalty")
    peft_compatible: bool = field(False, "keep PEFT's final phase: pruned triplets stay in the penalty and are zeroed every step")


@dataclasses.dataclass(slots=True, kw_only=True)
class OptimConfig:
    name: str = field("adamw", "adamw or sgd")
    learning_rate: float = field(5e-5, "peak learning rate")
    warmup: float = field(0.03, "warm-up steps; below 1: a fraction of all steps")
    schedule: str = field("cosine", "after warm-up: cosine (to 0) or constant")
    beta1: float = field(0.9, "AdamW: decay of the first moment")
    beta2: float = field(0.999, "AdamW: decay of the second moment")
    epsilon: float = field(1e-8, "AdamW: epsilon")
    weight_decay: float = field(0.0, "AdamW: decoupled weight decay of matrices")
    clip_norm: float = field(1.0, "global norm to which gradients are clipped; 0: no clipping")


@dataclasses.dataclass(slots=True, kw_only=True)
class TrainConfig:
    steps: int = field(0, "optimizer steps; 0: as many as train.epochs makes")
    epochs: float = field(1.0, "passes over the packed rows when train.steps is 0")
    batch_rows: int = field(8, "packed rows in an optimizer step, all microbatches together (B)")
    accumulation: int = field(1, "microbatches in an optimizer step")
    loss: str = field("supervised", "supervised, or preference (DPO on the pairs of data.corpora)")
    preference_beta: float = field(0.1, "of DPO: how strongly the policy is held to the model that it starts from")
    remat: str = field("auto", "what the backward pass computes again: none, matmul, attention or full; auto: the first of these that fits in memory")
    log_every: int = field(10, "steps between lines of metrics.jsonl")
    eval_every: int = field(0, "steps between evaluations of the validation rows; 0: at the end only")
    save_every: int = field(100, "steps between checkpoints")
    keep_checkpoints: int = field(2, "newest checkpoints kept")
    seed: int = field(0, "initial weights, dropout and the order of packed rows")


@dataclasses.dataclass(slots=True, kw_only=True)
class SamplingConfig:
    max_new_tokens: int = field(512, "tokens generated at most")
    temperature: float = field(0.7, "0: greedy")
    top_k: int = field(0, "keep the k most likely tokens; 0: all")
    top_p: float = field(0.95, "keep the most likely tokens up to this probability mass; 1: all")
    min_p: float = field(0.0, "drop tokens less likely than this share of the most likely one's probability; 0: none")
    repetition_penalty: float = field(1.1, "divides the logits of tokens already seen, those of the prompt among them; 1: none")
    presence_penalty: float = field(0.0, "taken off the logits of tokens that the answer has already")
    frequency_penalty: float = field(0.0, "the same, once for each time that the answer has them")
    stop: tuple[str, ...] = field((), "texts that end an answer, left out of it; a flag spells a line end \\n, a tab \\t, a carriage return \\r and a backslash before one of these letters \\\\", ESCAPED_TEXTS)
    num_beams: int = field(1, "beam search with this many beams, without random draws; 1: none")
    length_penalty: float = field(1.0, "beam search: exponent of the length that a beam's log-probability is divided by")
    penalty_alpha: float = field(0.0, "contrastive search: weight of the likeness to earlier tokens, among the top_k likely ones; 0: none")
    seed: int = field(0, "random draws")


@dataclasses.dataclass(slots=True, kw_only=True)
class InferenceConfig:
    max_rows: int = field(32, "answers that are generated side by side")
    weights: str = field("auto", "kept as: auto (model.dtype) or int8 (half the memory of bfloat16, a little less exact)")
    cache: str = field("auto", "keys and values kept as: auto (model.dtype) or int8")
    prefix_tokens: int = field(4096, "tokens of prompts' beginnings that are kept for prompts that begin alike; 0: none")


@dataclasses.dataclass(slots=True, kw_only=True)
class SolverConfig:
    name: str = field("adaptive", "normal, least_to_most, self_verification, enhanced, simplified_enhanced, adaptive, self_consistency, escalation or backward_verification")
    input: str = field("", "file of questions: one a line; or JSON, JSON lines, csv, tsv or parquet with question (and choices or A, B, ..., answer, id); empty: config.questions, else standard input", PATHS)
    language: str = field("zh", "of the prompts: zh or en")
    prompts: str = field("", "TOML or JSON file of prompts that take the place of those of the same name", PATHS)
    constrained: str = field("no", "hold plans, scores and letters to their form while they are generated: no, list (a plan is a numbered list) or json (a plan is an object)")
    plan_temperature: float = field(0.3, "of decompositions; answers have sampling.temperature")
    summary_temperature: float = field(0.5, "of the answer that is made from those to the sub-questions")
    judge_temperature: float = field(0.3, "of verdicts and scores of complexity")
    rewrites: int = field(1, "of an answer by its verdicts at most; each is judged again")
    samples: int = field(5, "answers that are sampled where answers are compared: self_consistency, each solver of escalation, candidates of backward_verification")
    sampled: str = field("normal", "solver whose answers self_consistency and backward_verification sample")
    pipeline: tuple[str, ...] = field(("normal", "least_to_most", "enhanced"), "escalation: solvers in the order in which they are tried")
    threshold: float = field(0.6, "escalation: share of samples with the same answer at which no further solver is tried")
    conditions: int = field(4, "backward_verification: numbers of a question that are masked at most, each in turn")
    checks: int = field(1, "backward_verification: times that each masked number (or the conclusion of a question without any) is asked for")
    max_calls: int = field(0, "calls of the model for a question; 0: no limit. Beyond a limit the best answer so far counts")
    max_tokens: int = field(0, "tokens of prompts and answers for a question, after which nothing more is asked; 0: no limit")
    max_seconds: float = field(0.0, "time for a question, after which nothing more is asked; 0: no limit")
    batch_questions: int = field(32, "questions that are solved side by side")
    show: str = field("trace", "printed for each question: trace, answer or nothing")


@dataclasses.dataclass(slots=True, kw_only=True)
class ExportConfig:
    dtype: str = field("bfloat16", "of the exported weights: bfloat16 or float32")
    shard_megabytes: int = field(4000, "size at which a new safetensors file is begun")


@dataclasses.dataclass(slots=True, kw_only=True)
class Config:
    """Configuration of one stage: prepare, pretrain, sft, evaluate, chat, solve or export."""

    tokenizer: TokenizerConfig = field(TokenizerConfig(), "tokenizer")
    model: ModelConfig = field(ModelConfig(), "model")
    data: DataConfig = field(DataConfig(), "data")
    adapter: AdapterConfig = field(AdapterConfig(), "adapter")
    optim: OptimConfig = field(OptimConfig(), "optimizer")
    train: TrainConfig = field(TrainConfig(), "training loop")
    parallel: ParallelConfig = field(ParallelConfig(), "devices and processes")
    sampling: SamplingConfig = field(SamplingConfig(), "generation")
    inference: InferenceConfig = field(InferenceConfig(), "how answers are generated")
    solver: SolverConfig = field(SolverConfig(), "solving of questions in several steps")
    export: ExportConfig = field(ExportConfig(), "export")
    questions: tuple[str, ...] = field((), "questions to answer: what chat and solve are asked, or samples after the pipeline; a flag is one question, as it is", TEXTS)


@dataclasses.dataclass(slots=True, kw_only=True)
class PipelineDataConfig:
    root: str = field("", "folder that holds the corpora, given to every stage; empty: the builtin corpus", PATHS)


@dataclasses.dataclass(slots=True, kw_only=True)
class PipelineConfig:
    """Configuration of the whole flow: pretrain, sft, evaluation, samples, export, verification."""

    data: PipelineDataConfig = field(PipelineDataConfig(), "data of all stages")
    pretrain: Config = field(Config(), "the base model")
    sft: Config = field(Config(), "the adapter on top of it")


def require(condition: bool, message: str) -> None:
    """Raises `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)
