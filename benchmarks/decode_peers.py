"""One contestant of `decode` in a process of its own, which generates when it is told to.

A line on standard input asks for one turn, which is one call for all prompts; the answer is a line of JSON on standard output.
When the input ends, so does the process. `python -m benchmarks.decode_peers NAME FOLDER` with NAME one of

    ours                    the package's engine
    ours:stepwise           the same, looking at every token on the host, for as many tokens as the next one finds
    ours:masked             the same under a constraint, whose masks are made on the host
    ours:chunks             as `ours`, for as many tokens
    ours:kept               as `ours`, with the keys and values of all prompts kept for the next turn
    ours:drawn              as `ours`, at temperature 0.7 and top-p 0.95
    keras_hub:32            keras-hub's `GemmaCausalLM.generate`, prompts of like lengths together, at most 32 in a call
    transformers:dynamic    transformers' `generate` with a dynamic cache, prompts padded on the left
    transformers:static     the same with a static cache
    transformers:drawn      the same with a dynamic cache, at temperature 0.7 and top-p 0.95
    transformers:dynamic:1  with one thread, where there are as many as cores else

Everything else is greedy, and but for constrained answers nothing ends before the last token, so that all do the same work. The
others are used as their documentation shows.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import workload
from benchmarks.contestants import peak_bytes
from benchmarks.turns import serve

Generate = Callable[[], list[list[int]]]  # the new tokens of every prompt

TOKENIZER = "tokenizer.model"
TEMPERATURE, TOP_P = 0.7, 0.95  # of contestants that draw
# Of what a solver asks for, without bounds: the end has to be forced.
SCHEMA = json.dumps({
    "type": "object", "additionalProperties": False, "required": ["complexity", "questions"],
    "properties": {
        "complexity": {"type": "integer", "minimum": 1, "maximum": 5},
        "questions": {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
    },
})  # fmt: skip


def ours(work: workload.Workload, folder: Path, mode: str = "") -> Generate:
    """The package's engine by what it has its users call."""
    from gemma_keras.config.sections import SamplingConfig
    from gemma_keras.inference.constraints.constraint import JsonSchema
    from gemma_keras.inference.engine import Engine
    from gemma_keras.inference.requests import Request
    from gemma_keras.models.forward import build_backbone
    from gemma_keras.models.loading import load_params
    from gemma_keras.text.tokenizer import Tokenizer

    backbone, rows = build_backbone(work.architecture, work.dtype), len(work.rows)
    params = load_params(backbone, work.architecture, folder / "hf", work.dtype)
    sampling = SamplingConfig(max_new_tokens=work.sequence_length, temperature=0.0, repetition_penalty=1.0)
    if mode == "drawn":
        sampling = dataclasses.replace(sampling, temperature=TEMPERATURE, top_p=TOP_P)
    requests = [Request(prompt=row.tokens.tolist(), sampling=sampling) for row in work.rows]
    if mode in ("", "kept", "drawn"):
        kept = sum(len(row.tokens) for row in work.rows) if mode == "kept" else 0
        engine = Engine(backbone, params, max_rows=rows, prefix_tokens=kept)
    else:
        tokenizer = Tokenizer(folder / TOKENIZER)
        stop_ids, constraint = (tokenizer.end_of_turn_id, tokenizer.eos_id), JsonSchema(SCHEMA)
        masked = [dataclasses.replace(r, constraint=constraint, stop_ids=stop_ids) for r in requests]
        engine = Engine(backbone, params, tokenizer, max_rows=rows)
        counts = [len(completion.tokens) for (completion,) in engine.generate(masked)]
        limits = [dataclasses.replace(sampling, max_new_tokens=count) for count in counts]
        free = [dataclasses.replace(r, sampling=limit) for r, limit in zip(requests, limits, strict=True)]
        requests = masked if mode == "masked" else free
        # Without a tokenizer there is no text, which no other contestant makes either.
        engine = engine if mode == "masked" else Engine(backbone, params, max_rows=rows)

    def generate() -> list[list[int]]:
        return [completion.tokens for (completion,) in engine.generate(requests)]

    def generate_stepwise() -> list[list[int]]:
        tasks = [engine.submit(request) for request in requests]
        while not all(task.done for task in tasks):
            engine.step(1)
        return [task.tokens for task in tasks]

    return generate_stepwise if mode == "stepwise" else generate


def keras_hub(work: workload.Workload, folder: Path, at_once: int) -> Generate:
    """keras-hub's compiled function, which decodes from the end of the shortest prompt."""
    import keras
    from keras_hub.models import GemmaCausalLM

    backbone = workload.keras_hub_backbone(work, folder)
    model = GemmaCausalLM(backbone, preprocessor=None)
    model.compile(optimizer=keras.optimizers.SGD(), sampler="greedy", jit_compile=True)
    order = sorted(range(len(work.rows)), key=lambda number: len(work.rows[number].tokens))
    groups = [order[start : start + at_once] for start in range(0, len(order), at_once)]

    def generate() -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for numbers in groups:
            rows = [work.rows[number] for number in numbers]
            length = max(len(row.tokens) for row in rows) + work.sequence_length
            tokens, mask, _ = workload.padded(rows, length)
            output: Any = model.generate({"token_ids": tokens, "padding_mask": mask}, stop_token_ids=None)
            for number, row, answer in zip(numbers, rows, output["token_ids"], strict=True):
                found[number] = answer[len(row.tokens) :][: work.sequence_length].tolist()
        return [found[number] for number in range(len(work.rows))]

    return generate


def transformers(work: workload.Workload, folder: Path, cache: str, threads: int) -> Generate:
    """transformers' generation; 0 threads: as many as there are cores."""
    import torch

    torch.set_num_threads(threads or os.cpu_count() or 1)
    model: Any = workload.transformers_model(work, folder)
    model.eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    length = max(len(row.tokens) for row in work.rows)
    backwards = [workload.Row(row.tokens[::-1], row.answer) for row in work.rows]
    tokens, mask, _ = workload.padded(backwards, length)
    inputs = {"input_ids": tokens, "attention_mask": mask}
    tensors = {name: torch.from_numpy(array[:, ::-1].copy()).long() for name, array in inputs.items()}
    settings: dict[str, Any] = {"do_sample": False}
    if cache == "drawn":
        settings = {"do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0}
    implementation = {"cache_implementation": cache} if cache == "static" else {}

    def generate() -> list[list[int]]:
        output = model.generate(**tensors, **implementation, **settings, max_new_tokens=work.sequence_length)
        return output[:, length:].tolist()

    return generate


def build(name: str, folder: Path) -> Generate:
    """The contestant of this name, compiled or not, with its weights in memory."""
    kind, *settings = name.split(":")
    work = workload.load(folder)
    if kind == "ours":
        return ours(work, folder, *settings)
    if kind == "keras_hub":
        return keras_hub(work, folder, int(settings[0]))
    return transformers(work, folder, settings[0], int(settings[1]) if settings[1:] else 0)


def contestant(name: str, folder: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Generates once a turn."""
    generate = build(name, folder)

    def take_turn(request: dict[str, Any]) -> dict[str, Any]:
        start, cores = time.perf_counter(), time.process_time()
        tokens = generate()
        seconds, processor = time.perf_counter() - start, time.process_time() - cores
        return {
            "seconds": seconds, "processor_seconds": processor, "tokens": tokens, "peak": peak_bytes()["host"],
        }  # fmt: skip

    return take_turn


if __name__ == "__main__":
    serve(contestant)
