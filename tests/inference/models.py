"""Random models whose greedy answers vary, the same models in transformers, and what either answers."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from gemma_keras.config.sections import SamplingConfig
from gemma_keras.inference.engine import Engine, with_streams
from gemma_keras.inference.requests import FinishedSequence, Request
from gemma_keras.models.families.registry import to_hf_config
from gemma_keras.models.forward import forward, logits
from gemma_keras.models.hf_names import hf_tensors
from tests.models.conftest import lively_tensors, small, small_gemma1, small_gemma3

SHAPES = {
    "window 8": small(),
    "27b: head_dim is not the query scale": small(query_pre_attn_scalar=9, num_query_heads=8, head_dim=8),
    "window 40, one KV head": small(num_key_value_heads=1, num_layers=4, sliding_window=40),
    "Gemma 1": small_gemma1(),
    "window 8, Gemma 3": small_gemma3(hidden_dim=48),
}
SMALLEST = small(num_layers=2)
LENGTHS = (37, 1, 12, 5)
GREEDY = SamplingConfig(max_new_tokens=64, temperature=0.0, top_p=1.0, repetition_penalty=1.0)
DRAWN = SamplingConfig(max_new_tokens=40, temperature=1.0, top_k=20, top_p=0.9, repetition_penalty=1.2, seed=5)


def prompts(vocabulary=97, lengths=LENGTHS, seed=0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, vocabulary, length).tolist() for length in lengths]


def varied_tensors(architecture) -> dict[str, np.ndarray]:
    """`lively_tensors` with small embeddings and a large final norm: else a token would follow itself for ever."""
    tensors = lively_tensors(architecture)
    tensors["model.embed_tokens.weight"] *= 0.1
    tensors["model.norm.weight"] += 10
    return tensors


def varied_params(architecture) -> dict[str, jax.Array]:
    """The same weights under Keras paths."""
    tensors = varied_tensors(architecture)
    return {tensor.path: jnp.asarray(tensor.from_hf(tensors[tensor.name])) for tensor in hf_tensors(architecture)}


def hf_model(architecture):
    config = transformers.AutoConfig.for_model(**to_hf_config(architecture, "float32"), attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    tensors = {name: torch.tensor(value) for name, value in varied_tensors(architecture).items()}
    model.load_state_dict(tensors, strict=False)
    return model


def hf_generate(model, prompt, **options) -> list[int]:
    """Greedy continuation of one prompt, without the prompt."""
    tokens = torch.tensor([prompt])
    options = {"max_new_tokens": 64, "eos_token_id": None, **options}
    with torch.no_grad():
        output = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, **options)
    return output[0, len(prompt) :].tolist()


def generate(engine: Engine, given, sampling: SamplingConfig, **options) -> list[FinishedSequence]:
    """The completion of each prompt."""
    requests = [Request(prompt=prompt, sampling=sampling, **options) for prompt in given]
    return [samples[0] for samples in engine.generate(with_streams(requests))]


def teacher_forced(engine, prompt, answer) -> np.ndarray:
    """Log-probabilities [n, V] of one forward pass, at the places of an answer's tokens."""
    whole = jnp.asarray([prompt + answer.tokens])
    positions = jnp.arange(whole.shape[1])[None]
    run = jax.jit(
        lambda params: logits(
            engine.backbone, params, forward(engine.backbone, params, whole, positions, whole * 0 + 1)
        )
    )
    return np.asarray(jax.nn.log_softmax(run(engine.params))[0, len(prompt) - 1 : -1])
