"""Generation against transformers, and its own invariants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from gemma_keras.adapters.inject import add_adapters, initial_adapter_params, merge
from gemma_keras.config.errors import UserError
from gemma_keras.config.schema import AdapterConfig, SamplingConfig
from gemma_keras.inference.generation import Generator
from gemma_keras.models.architectures import to_hf_config
from gemma_keras.models.forward import EMBEDDINGS, build_backbone
from gemma_keras.models.hf_names import hf_tensors
from tests.models.conftest import lively_tensors, small, small_gemma1

SHAPES = {
    "window 8": small(),
    "27b: head_dim is not the query scale": small(query_pre_attn_scalar=9, num_query_heads=8, head_dim=8),
    "window 40, one KV head": small(num_key_value_heads=1, num_layers=4, sliding_window=40),
    "Gemma 1": small_gemma1(),
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


@pytest.fixture(scope="module")
def generator() -> Generator:
    architecture = SMALLEST
    return Generator(backbone=build_backbone(architecture, "float32"), params=varied_params(architecture))


@pytest.mark.parametrize("name", SHAPES)
def test_greedy_equals_transformers(name):
    architecture = SHAPES[name]
    model = hf_model(architecture)
    ours = Generator(backbone=build_backbone(architecture, "float32"), params=varied_params(architecture))
    answers = ours.generate(prompts(), GREEDY, stop_ids=[])
    for prompt, answer in zip(prompts(), answers, strict=True):
        assert not answer.stopped
        assert answer.tokens == hf_generate(model, prompt)
        assert len(set(answer.tokens)) > 8  # not one token over and over


def test_penalty_and_stop_tokens_as_transformers(generator):
    model = hf_model(SMALLEST)
    config = SamplingConfig(max_new_tokens=64, temperature=0.0, repetition_penalty=1.3)
    stop_ids = [3, 17, 40, 61]
    stopped = []
    for prompt, answer in zip(prompts(), generator.generate(prompts(), config, stop_ids), strict=True):
        expected = hf_generate(model, prompt, repetition_penalty=1.3, eos_token_id=stop_ids)
        stopped.append(expected[-1] in stop_ids)
        assert answer.stopped == stopped[-1]
        assert answer.tokens == (expected[:-1] if answer.stopped else expected)
    assert any(stopped)


@pytest.mark.parametrize("config", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_rows_do_not_depend_on_their_neighbours(generator, config):
    together = generator.generate(prompts(), config, stop_ids=[3])
    for row, prompt in enumerate(prompts()):
        neighbours = prompts(seed=1, lengths=(3, 50, 2, 9))
        neighbours[row] = prompt
        assert generator.generate(neighbours, config, stop_ids=[3])[row] == together[row]
    if config is GREEDY:
        alone = [generator.generate([prompt], config, stop_ids=[3])[0] for prompt in prompts()]
        assert alone == together


def test_batches_of_any_size_give_the_same(generator):
    singly = Generator(backbone=generator.backbone, params=generator.params, batch_rows=1)
    assert singly.generate(prompts(), DRAWN, stop_ids=[3]) == generator.generate(prompts(), DRAWN, stop_ids=[3])
    assert generator.generate([], DRAWN, stop_ids=[3]) == []


def test_same_seed_same_answer(generator):
    first, again = (generator.generate(prompts(), DRAWN, stop_ids=[]) for _ in range(2))
    assert first == again
    other = SamplingConfig(max_new_tokens=40, temperature=1.0, top_p=1.0, seed=-6)
    assert generator.generate(prompts(), other, stop_ids=[]) != first
    equal = generator.generate([[5, 6]] * 2, other, stop_ids=[])
    assert equal[0] != equal[1]


def test_the_first_token_may_stop(generator):
    (answer,) = generator.generate(prompts()[:1], GREEDY, stop_ids=range(97))
    assert answer.tokens == [] and answer.stopped


def test_lengths_of_one_bucket_share_a_program(generator):
    compiled = []

    def record(event, duration, fun_name="", **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(fun_name)

    generator.generate(prompts(lengths=(20, 5, 9)), GREEDY, stop_ids=[1])
    jax.monitoring.register_event_duration_secs_listener(record)
    try:
        generator.generate(prompts(lengths=(3, 31, 2, 8)), GREEDY, stop_ids=[1, 2, 3])
        same_params = Generator(backbone=generator.backbone, params=dict(generator.params))
        same_params.generate(prompts(lengths=(32, 4, 4)), DRAWN, stop_ids=[])
        assert compiled == []
        generator.generate(prompts(lengths=(65,)), GREEDY, stop_ids=[1])
        assert len(compiled) == 1
    finally:
        jax.monitoring.unregister_event_duration_listener(record)


def test_bfloat16_answers(generator):
    architecture = SMALLEST
    params = {path: value.astype(jnp.bfloat16) for path, value in varied_params(architecture).items()}
    ours = Generator(backbone=build_backbone(architecture, "bfloat16"), params=params)
    for config in (GREEDY, DRAWN):
        answers = ours.generate(prompts(), config, stop_ids=[])
        assert [len(answer.tokens) for answer in answers] == [config.max_new_tokens] * 4


def test_adapters_in_place_equal_merged_ones():
    architecture = SMALLEST
    backbone = build_backbone(architecture, "float32")
    matrices = add_adapters(backbone, AdapterConfig(method="adalora", init_r=4, alpha=8.0))
    adapted = varied_params(architecture) | initial_adapter_params(matrices, seed=0)
    for index, path in enumerate(path for path in adapted if path.endswith("lora_E")):
        adapted[path] = 20 * jax.random.normal(jax.random.key(index), adapted[path].shape)
    in_place = Generator(backbone=backbone, params=adapted).generate(prompts(), GREEDY, stop_ids=[])
    plain = build_backbone(architecture, "float32")
    assert Generator(backbone=plain, params=merge(matrices, adapted)).generate(prompts(), GREEDY, []) == in_place
    without = Generator(backbone=plain, params=varied_params(architecture))
    assert without.generate(prompts(), GREEDY, []) != in_place


@pytest.mark.parametrize(
    ("given", "stop_ids", "message"),
    [
        ([[5], []], [], "prompt 1 is empty"),
        ([[5, 97]], [], "prompt 0 has the token id 97"),
        ([[-1]], [], "prompt 0 has the token id -1"),
        ([[5] * 1985], [], "1985 tokens, which with 64 new ones exceeds the model's 2048"),
        ([[5]], [97], "stop id 97"),
    ],
)
def test_impossible_prompts(generator, given, stop_ids, message):
    with pytest.raises(UserError, match=message):
        generator.generate(given, GREEDY, stop_ids)


def test_logits_that_are_not_finite_are_an_error(generator):
    params = dict(generator.params)
    params[EMBEDDINGS] = params[EMBEDDINGS].at[7].set(jnp.nan)
    broken = Generator(backbone=generator.backbone, params=params)
    with pytest.raises(UserError, match="logits for prompt 0 are not finite after 0 new tokens"):
        broken.generate([[5, 6]], GREEDY, stop_ids=[])
