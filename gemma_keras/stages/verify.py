"""Whether an exported folder means the same to transformers as to us: token ids, logits, greedy tokens."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gemma_keras.config.sections import SamplingConfig
from gemma_keras.data.progress import print_progress
from gemma_keras.inference.chat import ChatModel
from gemma_keras.inference.requests import Request
from gemma_keras.models.families import gemma3
from gemma_keras.models.forward import forward, logits

LOGIT_TOLERANCE = 2e-4  # float32, after the soft caps; of Gemma 3, whose logits pass 100, a share of the largest
GREEDY_STEPS = 64


def verify_export(folder: Path, model: ChatModel, questions: Sequence[str]) -> dict:
    """Compares `model` (float32, loaded from `folder`) with what transformers makes of the same folder.

    Returns:
        `transformers` (its version; None when it or torch is not installed, and then nothing else),
        `max_logit_difference`, `same_token_ids`, `same_chat_template`, `same_greedy_tokens`, and `verified`: all agree, or
        None without a question to compare.
    """
    if not (importlib.util.find_spec("transformers") and importlib.util.find_spec("torch")):
        print_progress("transformers and torch are not installed: the export was not compared with them")
        return {"transformers": None}
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    report: dict = {"transformers": transformers.__version__, "same_token_ids": True, "same_chat_template": True}
    report |= {"max_logit_difference": 0.0, "same_greedy_tokens": True}
    architecture, compared, close = model.backbone.architecture, False, True
    without_piece = list(range(architecture.pieces, architecture.vocabulary_size)) or None
    for question in questions:
        if model.tokenizer.encode_with_control(question) != model.tokenizer.encode_content(question):
            continue  # transformers reads control tokens in content; we do not, on purpose
        messages = [{"role": "user", "content": question}]
        (ids,) = model.template.prompts(model.tokenizer, [messages])
        if len(ids) + GREEDY_STEPS > architecture.max_position:
            continue
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        report["same_chat_template"] &= tokenizer(rendered, add_special_tokens=False)["input_ids"] == ids
        report["same_token_ids"] &= tokenizer(question)["input_ids"][1:] == model.tokenizer.encode_content(question)
        with torch.no_grad():
            expected = theirs(torch.tensor([ids])).logits[0].numpy()
            greedy = theirs.generate(
                torch.tensor([ids]), max_new_tokens=GREEDY_STEPS, do_sample=False, suppress_tokens=without_piece
            )[0, len(ids) :]
        difference = float(np.abs(_logits(model, ids) - expected).max())
        tolerance = LOGIT_TOLERANCE * (float(np.abs(expected).max()) if architecture.family == gemma3.FAMILY else 1.0)
        report["max_logit_difference"] = max(report["max_logit_difference"], difference)
        report["same_greedy_tokens"] &= _equal_up_to_a_tie(model, ids, _greedy(model, ids), greedy.tolist(), tolerance)
        compared, close = True, close and difference <= tolerance
    agree = (report["same_token_ids"], report["same_chat_template"], report["same_greedy_tokens"])
    return report | {"verified": close and all(agree) if compared else None}


def _logits(model: ChatModel, ids: list[int]) -> np.ndarray:
    tokens = jnp.array([ids])
    positions = jnp.arange(len(ids))[None]
    run = jax.jit(
        lambda params: logits(
            model.backbone, params, forward(model.backbone, params, tokens, positions, tokens * 0 + 1)
        )
    )
    return np.asarray(run(model.params)[0])


def _greedy(model: ChatModel, ids: list[int]) -> list[int]:
    """Our greedy answer, with the stop token where it ended."""
    sampling = SamplingConfig(max_new_tokens=GREEDY_STEPS, temperature=0.0, repetition_penalty=1.0)
    ((answer,),) = model.engine.generate([Request(prompt=ids, sampling=sampling, stop_ids=model.stop_ids)])
    if not answer.stopped:
        return answer.tokens
    scores = _logits(model, ids + answer.tokens)[-1]
    return [*answer.tokens, max(model.stop_ids, key=lambda stop: scores[stop])]


def _equal_up_to_a_tie(model: ChatModel, ids: list[int], ours: list[int], theirs: list[int], tolerance: float) -> bool:
    """Whether two greedy answers are equal until two tokens score alike, as far as float32 can tell."""
    for place, (our_token, their_token) in enumerate(zip(ours, theirs)):
        if our_token != their_token:
            scores = _logits(model, ids + ours[:place])[-1]
            return bool(abs(scores[our_token] - scores[their_token]) <= 2 * tolerance)
    return len(ours) == len(theirs)
