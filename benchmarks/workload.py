"""The work that all contestants of `train_step` do: one model, and the same rows at the same step.

Axes: R rows of a step, P packed rows that hold them, T tokens, V vocabulary.
"""

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from gemma_keras.models.architecture import Architecture
from gemma_keras.models.families.registry import from_hf_config, gemma2, get_architecture, to_hf_config

SMALL = gemma2.shape(
    name="bench_48m", num_layers=8, hidden_dim=512, intermediate_dim=2048, num_query_heads=8, num_key_value_heads=4,
    head_dim=64, query_pre_attn_scalar=64, vocabulary_size=32_000, sliding_window=4096, max_position=2048,
)  # fmt: skip
TOKENIZER_CORPORA = ("gemmalm_chinese", "zh_wiki", "cluecorpussmall", "alpaca_gpt4_zh", "belle")
# Rank 16 on q, k, v, o; phases such that every step of a measurement scores and every tenth allocates.
RANK, TARGET_RANK, ALPHA, DROPOUT, BETA, DELTA_T, ORTHOGONALITY = 16, 8, 32.0, 0.05, 0.85, 10, 0.5
TOTAL_STEPS, LEARNING_RATE, SEED = 10_000, 5e-5, 0


@dataclasses.dataclass(frozen=True)
class Row:
    """One conversation: `tokens` i32[n], and `answer` bool[n], which of them carry loss."""

    tokens: np.ndarray
    answer: np.ndarray


@dataclasses.dataclass(frozen=True)
class Workload:
    """Rows, and for every step the packed rows: `steps[s][p]` are row numbers."""

    rows: list[Row]
    steps: list[list[list[int]]]
    sequence_length: int
    architecture: Architecture
    dtype: str

    def of_step(self, step: int) -> list[Row]:
        """The rows of a step; after the last step comes the first."""
        return [self.rows[number] for packed in self.steps[step % len(self.steps)] for number in packed]

    def useful_tokens(self, step: int) -> int:
        """Tokens that are not padding."""
        return sum(len(row.tokens) for row in self.of_step(step))


def architecture_of(size: str) -> Architecture:
    """`small` is the shape that the requirement names; others are those of the package, `2b` that of Gemma 2."""
    return SMALL if size == "small" else get_architecture(size if "_" in size else f"gemma2_{size}")


def real_rows(root: Path, vocabulary_size: int, folder: Path, sequence_length: int) -> tuple[list[Row], str]:
    """The stage-1 rows of `gemmalm_chinese`, by a tokenizer trained on the corpora below `root`; and what was done."""
    from gemma_keras.data.pipeline import LOSS_KINDS
    from gemma_keras.text.templates import get_template
    from gemma_keras.text.tokenizer import Tokenizer

    pieces = min(vocabulary_size, 32_000)
    model = trained_tokenizer(root, pieces, folder)
    conversations = [record.messages for record in _records("gemmalm_chinese", root)]
    encodings = get_template("gemmalm_zh").encode_batch(Tokenizer(model), conversations)
    answers = (np.isin(encoding.kinds, LOSS_KINDS["response"]) for encoding in encodings)
    rows = [Row(e.ids[:sequence_length], a[:sequence_length]) for e, a in zip(encodings, answers, strict=True)]
    rows = [row for row in rows if row.answer[1:].any()]
    return rows, f"{len(rows)} rows of gemmalm_chinese stage 1 by a tokenizer of {pieces} pieces trained on the corpora"


def trained_tokenizer(root: Path | None, pieces: int, folder: Path) -> Path:
    """A tokenizer that `folder` keeps, trained on the corpora below `root`, or on words of drawn characters."""
    from gemma_keras.builtin.tokenizer import train_tokenizer

    model = folder / f"{'drawn' if root is None else 'tokenizer'}_{pieces}.model"
    if model.exists():
        return model
    if root is not None:
        texts = [text for name in TOKENIZER_CORPORA for record in _records(name, root) for text in _texts(record)]
    else:
        rng = np.random.default_rng(SEED)
        characters = [*map(chr, range(ord("一"), ord("一") + 3000)), *map(chr, range(ord("a"), ord("z") + 1))]
        words = ["".join(rng.choice(characters, rng.integers(2, 5))) for _ in range(pieces)]
        texts = ["".join(rng.choice(words, 20)) for _ in range(pieces // 2)]
    train_tokenizer(texts, pieces, model)
    return model


def drawn_rows(count: int, vocabulary_size: int, sequence_length: int) -> tuple[list[Row], str]:
    """Rows of random tokens whose lengths have about the published distribution; and what was done."""
    rng = np.random.default_rng(SEED)
    # A lognormal of median 120 has its mean at 155 and its 90th percentile at 330.
    lengths = np.clip(np.exp(rng.normal(np.log(120), 0.75, count)), 16, sequence_length).astype(int)
    rows = []
    for length in lengths:
        tokens = rng.integers(425, vocabulary_size, length).astype(np.int32)
        rows.append(Row(tokens, np.arange(length) >= length // 3))
    note = "lengths drawn from the published distribution (median 120, mean 155), two thirds of a row its response"
    return rows, f"{count} rows of random tokens, {note}; give --data_root for real rows"


def _records(name: str, root: Path):
    from gemma_keras.config.sections import CorpusConfig
    from gemma_keras.data.sources import locate, read_corpus

    config = CorpusConfig(name=name)
    return [record for row in read_corpus(locate(config, root)) for record in row.records]


def _texts(record) -> list[str]:
    from gemma_keras.data.cleaning.rules import contents

    return list(contents(record))


def plan_steps(rows: list[Row], sequence_length: int, packed_rows: int, count: int) -> list[list[list[int]]]:
    """`count` steps of `packed_rows` packed rows, all with the same number R of rows.

    R is the average: keras-hub's program is compiled for a fixed number of rows.
    """
    from gemma_keras.data.encoding.packing import pack

    offsets, flat = pack([len(row.tokens) for row in rows], sequence_length)
    packed = [flat[start:end].tolist() for start, end in itertools.pairwise(offsets.tolist())]
    wanted = round(packed_rows * len(rows) / len(packed))
    rng = np.random.default_rng(SEED)
    steps: list[list[list[int]]] = []
    while len(steps) < count:
        chosen = [packed[number] for number in rng.choice(len(packed), packed_rows, replace=False)]
        if sum(map(len, chosen)) == wanted:
            steps.append(chosen)
    return steps


def save(workload: Workload, folder: Path, post_norms: float = 0.0) -> None:
    """Rows, steps and random weights, for the contestants' processes; `post_norms` is added to the scales behind layers."""
    lengths = np.array([len(row.tokens) for row in workload.rows])
    tokens = np.concatenate([row.tokens for row in workload.rows])
    np.savez(
        folder / "rows.npz", lengths=lengths, tokens=tokens, answer=np.concatenate([r.answer for r in workload.rows])
    )
    described = dataclasses.asdict(workload) | {"rows": len(workload.rows)}
    (folder / "workload.json").write_text(json.dumps(described), encoding="utf-8")
    _save_weights(workload.architecture, workload.dtype, folder, post_norms)


def load(folder: Path) -> Workload:
    """What `save` wrote."""
    described = json.loads((folder / "workload.json").read_text(encoding="utf-8"))
    arrays = np.load(folder / "rows.npz")
    edges = np.cumsum(arrays["lengths"])[:-1]
    rows = [Row(*pair) for pair in zip(*(np.split(arrays[name], edges) for name in ("tokens", "answer")), strict=True)]
    hf_config = json.loads((folder / "hf" / "config.json").read_text(encoding="utf-8"))
    architecture = from_hf_config(hf_config, described["architecture"]["name"])
    return Workload(rows, described["steps"], described["sequence_length"], architecture, described["dtype"])


def _save_weights(architecture: Architecture, dtype: str, folder: Path, post_norms: float) -> None:
    """The same weights for all: in Hugging Face's layout, and in that of the package and of keras-hub."""
    import jax

    from gemma_keras.models.forward import build_backbone, initial_params
    from gemma_keras.models.hf_names import hf_tensors

    with jax.default_device(jax.devices("cpu")[0]):
        ours = {
            path: np.asarray(array) for path, array in initial_params(build_backbone(architecture, dtype), SEED).items()
        }
    for path in ours:
        if re.search(r"/post_\w+_norm/scale$", path):
            ours[path] = ours[path] + np.asarray(post_norms, ours[path].dtype)
    save_file(ours, folder / "ours.safetensors")
    theirs = {}
    for tensor in hf_tensors(architecture):
        out_first = ours[tensor.path].transpose(tensor.kind.outs + tensor.kind.ins)
        theirs[tensor.name] = np.ascontiguousarray(out_first.reshape(tensor.hf_shape))
    (folder / "hf").mkdir(exist_ok=True)
    save_file(theirs, folder / "hf" / "model.safetensors", metadata={"format": "pt"})
    (folder / "hf" / "config.json").write_text(json.dumps(to_hf_config(architecture, dtype)), encoding="utf-8")


def load_params(folder: Path) -> dict[str, np.ndarray]:
    """Weights by variable path."""
    return load_file(folder / "ours.safetensors")


def transformers_model(workload: Workload, folder: Path):
    """transformers' model with the weights in `folder`, by the fastest attention that computes it."""
    import torch
    import transformers

    # Of those on a CPU only `eager` knows a soft cap.
    capped = workload.architecture.attention_logit_soft_cap is not None
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder / "hf", dtype=getattr(torch, workload.dtype), attn_implementation="eager" if capped else "sdpa"
    )


def keras_hub_backbone(workload: Workload, folder: Path):
    """keras-hub's own backbone with the weights in `folder`."""
    from keras_hub.models import GemmaBackbone

    a = workload.architecture
    assert not a.qk_norms, "keras-hub's Gemma 3 takes no part"
    backbone = GemmaBackbone(
        vocabulary_size=a.vocabulary_size, num_layers=a.num_layers, num_query_heads=a.num_query_heads,
        num_key_value_heads=a.num_key_value_heads, hidden_dim=a.hidden_dim, intermediate_dim=2 * a.intermediate_dim,
        head_dim=a.head_dim, use_post_ffw_norm=True, use_post_attention_norm=True,
        attention_logit_soft_cap=a.attention_logit_soft_cap, final_logit_soft_cap=a.final_logit_soft_cap,
        use_sliding_window_attention=True, sliding_window_size=a.sliding_window, dtype=workload.dtype,
    )  # fmt: skip
    params = load_params(folder)
    for weight in backbone.weights:
        weight.assign(params[weight.path])
    return backbone


def packed_batch(workload: Workload, step: int) -> dict[str, np.ndarray]:
    """The packed rows [P, T] of a step, as the package's own batches lay them out."""
    packed = workload.steps[step % len(workload.steps)]
    shape = (len(packed), workload.sequence_length)
    batch: dict[str, Any] = {n: np.zeros(shape, np.int32) for n in ("tokens", "targets", "segment_ids", "positions")}
    batch["loss_weights"] = np.zeros(shape, np.float32)
    for place, numbers in enumerate(packed):
        start = 0
        for segment, row in enumerate((workload.rows[number] for number in numbers), start=1):
            end = start + len(row.tokens)
            batch["tokens"][place, start:end] = row.tokens
            batch["targets"][place, start : end - 1] = row.tokens[1:]
            batch["loss_weights"][place, start : end - 1] = row.answer[1:]
            batch["segment_ids"][place, start:end] = segment
            batch["positions"][place, start:end] = np.arange(end - start)
            start = end
    return batch


def padded(rows: list[Row], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens i32, mask bool, answer bool), each [rows, length], padded at the end."""
    tokens = np.zeros((len(rows), length), np.int32)
    mask, answer = np.zeros(tokens.shape, bool), np.zeros(tokens.shape, bool)
    for place, row in enumerate(rows):
        end = len(row.tokens)
        tokens[place, :end], mask[place, :end], answer[place, :end] = row.tokens, True, row.answer
    return tokens, mask, answer
