"""Generation against transformers, and its own invariants."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma_keras.adapters.inject import add_adapters, initial_adapter_params, merge
from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import AdapterConfig, SamplingConfig
from gemma_keras.inference import scheduler
from gemma_keras.inference.constraints.constraint import Choice
from gemma_keras.inference.engine import Engine, with_streams
from gemma_keras.inference.prefill import PromptReader
from gemma_keras.inference.requests import Request
from gemma_keras.inference.scheduler import Scheduler
from gemma_keras.models.forward import EMBEDDINGS, build_backbone
from gemma_keras.models.quantization import Int8, quantize_params
from tests.cpu_devices import environment_of
from tests.inference.models import (
    DRAWN,
    GREEDY,
    SHAPES,
    SMALLEST,
    generate,
    hf_generate,
    hf_model,
    prompts,
    teacher_forced,
    varied_params,
)

LONG = dataclasses.replace(GREEDY, max_new_tokens=128)


@pytest.mark.parametrize(
    "name", [name if name.startswith("window") else pytest.param(name, marks=pytest.mark.long) for name in SHAPES]
)
def test_greedy_equals_transformers(name):
    """128 steps of ragged prompts, some longer than the window."""
    architecture = SHAPES[name]
    model = hf_model(architecture)
    answers = generate(Engine(build_backbone(architecture, "float32"), varied_params(architecture)), prompts(), LONG)
    for prompt, answer in zip(prompts(), answers, strict=True):
        assert not answer.stopped
        assert answer.tokens == hf_generate(model, prompt, max_new_tokens=128)
        assert len(set(answer.tokens)) > 8  # not one token over and over


def test_long_prompts_are_read_in_pieces(engine):
    model = hf_model(SMALLEST)
    given = prompts(lengths=(1100, 513, 40))
    for prompt, answer in zip(given, generate(engine, given, GREEDY), strict=True):
        assert answer.tokens == hf_generate(model, prompt)


def test_penalty_and_stop_tokens_as_transformers(engine):
    model = hf_model(SMALLEST)
    config = SamplingConfig(max_new_tokens=64, temperature=0.0, repetition_penalty=1.3)
    stop_ids = [3, 17, 40, 61]
    stopped = []
    for prompt, answer in zip(prompts(), generate(engine, prompts(), config, stop_ids=stop_ids), strict=True):
        expected = hf_generate(model, prompt, repetition_penalty=1.3, eos_token_id=stop_ids)
        stopped.append(expected[-1] in stop_ids)
        assert answer.stopped == stopped[-1]
        assert answer.tokens == (expected[:-1] if answer.stopped else expected)
    assert any(stopped)


def test_same_seed_same_answer(engine):
    first, again = (generate(engine, prompts(), DRAWN) for _ in range(2))
    assert first == again
    other = SamplingConfig(max_new_tokens=40, temperature=1.0, top_p=1.0, seed=-6)
    assert generate(engine, prompts(), other) != first
    equal = generate(engine, [[5, 6]] * 2, other)
    assert equal[0] != equal[1]


def test_samples_of_one_prompt(engine):
    (samples,) = engine.generate([Request(prompt=prompts()[0], sampling=DRAWN, samples=5)])
    assert len({tuple(sample.tokens) for sample in samples}) == 5
    (fewer,) = engine.generate([Request(prompt=prompts()[0], sampling=DRAWN, samples=2)])
    assert fewer == samples[:2]


def test_the_first_token_may_stop(engine):
    (answer,) = generate(engine, prompts()[:1], GREEDY, stop_ids=range(97))
    assert answer.tokens == [] and answer.stopped


def test_log_probabilities(engine):
    biased = {7: 2.0, 11: -100.0}
    (answer,) = generate(engine, prompts()[:1], DRAWN, log_probs=3, logit_bias=biased)
    expected = teacher_forced(engine, prompts()[0], answer)
    np.testing.assert_allclose(answer.log_probs, expected[np.arange(40), answer.tokens], atol=1e-4)
    for place, alternatives in enumerate(answer.alternatives):
        ids, values = zip(*alternatives, strict=True)
        np.testing.assert_allclose(values, np.sort(expected[place])[::-1][:3], atol=1e-4)
        np.testing.assert_allclose(expected[place, list(ids)], values, atol=1e-4)
    (plain,) = generate(engine, prompts()[:1], DRAWN, logit_bias=biased)
    assert plain.tokens == answer.tokens and plain.log_probs is None and 11 not in plain.tokens


def test_bias_decides(engine):
    forced, free = engine.generate(
        with_streams(
            [Request(prompt=[5, 6], sampling=DRAWN, logit_bias={42: 100.0}), Request(prompt=[5, 6], sampling=DRAWN)]
        )
    )
    assert set(forced[0].tokens) == {42} and set(free[0].tokens) != {42}


def test_bfloat16_and_8_bits_answer(engine):
    params = {path: value.astype(jnp.bfloat16) for path, value in varied_params(SMALLEST).items()}
    small = quantize_params(params)
    assert not params  # no two copies are kept
    assert isinstance(small[EMBEDDINGS], Int8) and small[EMBEDDINGS].values.dtype == jnp.int8
    ours = Engine(build_backbone(SMALLEST, "bfloat16"), small, cache_dtype="int8")
    assert [len(answer.tokens) for answer in generate(ours, prompts(), GREEDY)] == [64] * 4


@pytest.mark.long
def test_8_bits_are_close(engine):
    """The likeliest first tokens of 16 prompts."""
    small = Engine(engine.backbone, quantize_params(varied_params(SMALLEST)), max_rows=4)
    given = prompts(lengths=range(1, 17))
    same = [
        ours.tokens[0] == exact.tokens[0]
        for ours, exact in zip(generate(small, given, GREEDY), generate(engine, given, GREEDY), strict=True)
    ]
    assert sum(same) >= 12


@pytest.mark.long
def test_adapters_in_place_equal_merged_ones():
    backbone = build_backbone(SMALLEST, "float32")
    matrices = add_adapters(backbone, AdapterConfig(method="adalora", init_r=4, alpha=8.0))
    adapted = varied_params(SMALLEST) | initial_adapter_params(matrices, seed=0)
    for index, path in enumerate(path for path in adapted if path.endswith("lora_E")):
        adapted[path] = 20 * jax.random.normal(jax.random.key(index), adapted[path].shape)
    in_place = generate(Engine(backbone, adapted), prompts(), GREEDY)
    plain = build_backbone(SMALLEST, "float32")
    assert generate(Engine(plain, merge(matrices, adapted)), prompts(), GREEDY) == in_place
    assert generate(Engine(plain, varied_params(SMALLEST)), prompts(), GREEDY) != in_place


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([[5], []], {}, "prompt 1 is empty"),
        ([[5, 97]], {}, "prompt 0 has the token id 97"),
        ([[-1]], {}, "prompt 0 has the token id -1"),
        ([[5] * 1985], {}, "1985 tokens, which with 64 new ones exceeds the model's 2048"),
        ([[5]], {"stop_ids": [97]}, "stop id 97"),
        ([[5]], {"logit_bias": {97: 1.0}}, "biased id 97"),
        ([[5]], {"logit_bias": {1: float("nan")}}, "logit_bias has a value"),
        ([[5]], {"samples": 0}, "samples is 0"),
        ([[5]], {"log_probs": 21}, "log_probs is 21"),
        ([[5]], {"constraint": Choice(("a",))}, "need a tokenizer"),
    ],
)
def test_impossible_requests(engine, given, options, message):
    with pytest.raises(UserError, match=message):
        generate(engine, given, GREEDY, **options)


def test_logits_that_are_not_finite_are_an_error(engine):
    params = varied_params(SMALLEST)
    params[EMBEDDINGS] = params[EMBEDDINGS].at[7].set(jnp.nan)
    broken = Engine(engine.backbone, params, max_rows=4)
    with pytest.raises(UserError, match="logits for prompt 0 are not finite after 0 new tokens"):
        generate(broken, [[5, 6]], GREEDY)
    broken.params = engine.params
    assert generate(broken, prompts(), GREEDY) == generate(engine, prompts(), GREEDY)


@pytest.mark.parametrize("small", [False, True], ids=["float32", "int8"])
def test_a_single_nan_in_a_vocabulary_of_real_size_is_an_error(small):
    """Of a token that no prompt has. XLA:CPU loses it in a maximum of thousands of numbers."""
    architecture = SMALLEST.replace(vocabulary_size=4096)
    params = varied_params(architecture)
    params[EMBEDDINGS] = params[EMBEDDINGS].at[3000, 3].set(jnp.nan)
    broken = Engine(build_backbone(architecture, "float32"), quantize_params(params) if small else params)
    for config in (GREEDY, DRAWN):
        with pytest.raises(UserError, match="are not finite after 0 new tokens"):
            generate(broken, prompts(), config)


@pytest.mark.parametrize("of, where", [(Scheduler, "_deliver"), (PromptReader, "read"), (scheduler, "row_values")])
def test_an_interruption_leaves_the_engine_usable(engine, of, where, monkeypatch):
    expected = generate(engine, prompts(), GREEDY)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(of, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate(engine, prompts(), GREEDY)
    assert generate(engine, prompts(), GREEDY) == expected


MESHES = """
import dataclasses
import sys
import jax
from gemma_keras.inference.engine import Engine
from gemma_keras.parallel.plan import ComputePlan
from gemma_keras.models.forward import build_backbone
from gemma_keras.models.quantization import quantize_params
from gemma_keras.parallel.mesh import make_mesh
from gemma_keras.models.weight_sharding import param_sharding
from tests.inference.models import DRAWN, GREEDY, SMALLEST, generate, prompts, varied_params

architecture = SMALLEST.replace(vocabulary_size=96)
given = [[token % 96 for token in prompt] for prompt in prompts(lengths=(37, 1, 12, 5, 600))]
backbone = build_backbone(architecture, "float32")
plain = varied_params(architecture)
beams = dataclasses.replace(GREEDY, max_new_tokens=10, num_beams=2)
search = dataclasses.replace(GREEDY, max_new_tokens=10, penalty_alpha=0.5, top_k=3)
everything = [(plain, (GREEDY, DRAWN, beams, search)), (quantize_params(dict(plain)), (GREEDY,))]
meshes = ((1, 2), (2, 4), (3, 2))
if sys.argv[1:] == ["short"]:
    everything, meshes, given = [(plain, (GREEDY,))], ((1, 2),), given[:4]
for kept, cases in everything:
    alone = Engine(backbone, kept)
    expected = [generate(alone, given, case, stop_ids=[3]) for case in cases]
    for data, model in meshes:
        mesh = make_mesh(jax.devices(), data, model)
        place = lambda path, x: jax.device_put(x, param_sharding(mesh, path, x.shape, in_use=True))
        params = {path: jax.tree.map(lambda x: place(path, x), weight) for path, weight in kept.items()}
        engine = Engine(backbone, params, plan=ComputePlan(mesh=mesh), prefix_tokens=256)
        found = [generate(engine, given, case, stop_ids=[3]) for case in cases]
        assert found == expected, (data, model)
        assert [generate(engine, given[:1], case, stop_ids=[3])[0] for case in cases] == [answers[0] for answers in expected]
print("all meshes answer alike")
"""


@pytest.mark.long
@pytest.mark.parametrize("amount", ["short", "all"])
def test_meshes_answer_as_one_device(amount):
    """In another process, because the number of devices is fixed when JAX starts."""
    done = subprocess.run(
        [sys.executable, "-c", MESHES, amount],
        env=environment_of(devices=8),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "all meshes answer alike" in done.stdout, done.stdout + done.stderr
