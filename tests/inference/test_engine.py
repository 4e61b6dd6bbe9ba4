"""Generation against transformers, and its own invariants."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma_keras.adapters.inject import add_adapters, initial_adapter_params, merge
from gemma_keras.config.errors import UserError
from gemma_keras.config.schema import AdapterConfig, SamplingConfig
from gemma_keras.inference.batch import Batch
from gemma_keras.inference.constraints import Choice, Regex
from gemma_keras.inference.engine import Engine, with_streams
from gemma_keras.inference.prefix_cache import BLOCK
from gemma_keras.inference.requests import Completion, Request
from gemma_keras.inference.text_stream import StopStrings
from gemma_keras.models.forward import EMBEDDINGS, build_backbone, forward, logits
from gemma_keras.models.quantization import Int8, quantize_params
from tests.inference.models import DRAWN, GREEDY, SHAPES, SMALLEST, hf_generate, hf_model, prompts, varied_params

LONG = dataclasses.replace(GREEDY, max_new_tokens=128)


def generate(engine: Engine, given, sampling: SamplingConfig, **options) -> list[Completion]:
    """The completion of each prompt."""
    requests = [Request(prompt=prompt, sampling=sampling, **options) for prompt in given]
    return [samples[0] for samples in engine.generate(with_streams(requests))]


@pytest.fixture(scope="module")
def engine() -> Engine:
    """With few rows, so that few programs are compiled."""
    return Engine(build_backbone(SMALLEST, "float32"), varied_params(SMALLEST), max_rows=4)


@pytest.fixture(scope="module")
def speaking(tokenizer) -> Engine:
    """With a tokenizer."""
    architecture = SMALLEST.replace(vocabulary_size=tokenizer.vocabulary_size)
    return Engine(build_backbone(architecture, "float32"), varied_params(architecture), tokenizer, max_rows=4)


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


@pytest.mark.parametrize("config", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_rows_do_not_depend_on_their_neighbours(engine, config):
    together = generate(engine, prompts(), config, stop_ids=[3])
    for row, prompt in list(enumerate(prompts()))[:2]:
        neighbours = prompts(seed=1, lengths=(3, 50, 2, 9))
        neighbours[row] = prompt
        assert generate(engine, neighbours, config, stop_ids=[3])[row] == together[row]
    if config is GREEDY:
        assert [generate(engine, [prompt], config, stop_ids=[3])[0] for prompt in prompts()] == together


def test_rows_join_and_leave_a_running_batch(engine):
    """Nine answers of different lengths and settings through two rows."""
    lengths = (9, 30, 1, 64, 3, 17, 40, 5, 22)
    configs = [
        dataclasses.replace(DRAWN if n % 2 else GREEDY, max_new_tokens=n) for n in (40, 3, 17, 33, 1, 50, 8, 16, 20)
    ]
    given = prompts(lengths=lengths)
    requests = with_streams([Request(prompt=p, sampling=c) for p, c in zip(given, configs, strict=True)])
    through_two = Engine(engine.backbone, engine.params, max_rows=2)
    assert through_two.generate(requests) == engine.generate(requests)
    assert [len(samples[0].tokens) for samples in engine.generate(requests)] == [c.max_new_tokens for c in configs]
    assert engine.generate([]) == []


def test_a_request_joins_while_others_run(engine):
    """It needs more slots and one more row than there are."""
    first = [engine.submit(Request(prompt=prompt, sampling=GREEDY)) for prompt in prompts()[:2]]
    engine.step()
    late = engine.submit(Request(prompt=prompts(lengths=(150,))[0], sampling=GREEDY))
    while not (late.done and all(task.done for task in first)):
        engine.step()
    expected = generate(engine, [*prompts()[:2], *prompts(lengths=(150,))], GREEDY)
    assert [task.completion for task in (*first, late)] == expected


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


def test_lengths_of_one_bucket_share_programs(engine):
    compiled = []

    def record(event, duration, fun_name="", **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(fun_name)

    generate(engine, prompts(lengths=(20, 5, 9)), GREEDY, stop_ids=[1])
    jax.monitoring.register_event_duration_secs_listener(record)
    try:
        generate(engine, prompts(lengths=(3, 30, 2, 8)), GREEDY, stop_ids=[1, 2, 3])
        generate(Engine(engine.backbone, dict(engine.params)), prompts(lengths=(31, 4, 4)), DRAWN)
        assert compiled == []
        generate(engine, prompts(lengths=(90, 4, 4)), GREEDY, stop_ids=[1])
        assert 0 < len(compiled) <= 6
    finally:
        jax.monitoring.unregister_event_duration_listener(record)


def test_prompts_that_begin_alike_are_read_once():
    """The window is longer than what is kept: a ring loses the beginnings of longer prompts, which are read again."""
    architecture = SMALLEST.replace(sliding_window=230)
    plain = Engine(build_backbone(architecture, "float32"), varied_params(architecture), max_rows=4)
    system = prompts(lengths=(2 * BLOCK + 10,))[0]
    given = [system + tail for tail in prompts(lengths=(5, 30, 80), seed=1)] + [system[:BLOCK], prompts()[0]]
    expected = generate(plain, given, GREEDY)
    keeping = Engine(plain.backbone, plain.params, prefix_tokens=8 * BLOCK, max_rows=4)
    assert generate(keeping, given, GREEDY) == expected
    assert keeping.prefixes.hits == 2 * 2 * BLOCK  # the second and third wait for the first
    assert generate(keeping, given[::-1], GREEDY) == expected[::-1]
    assert keeping.prefixes.hits > 8 * BLOCK


def test_whoever_waits_behind_a_shared_beginning_has_room():
    """The second prompt waits for the first one's beginning, so the third, which is longer, takes its row."""
    system, long = prompts(lengths=(BLOCK + 6, 300))
    requests = [Request(prompt=prompt, sampling=GREEDY) for prompt in ([*system, 5], [*system, 6, 7], long)]
    plain = Engine(build_backbone(SMALLEST, "float32"), varied_params(SMALLEST), max_rows=2)
    keeping = Engine(plain.backbone, plain.params, prefix_tokens=8 * BLOCK, max_rows=2)
    assert keeping.generate(requests) == [plain.generate([request])[0] for request in requests]


def test_kept_beginnings_of_prompts_outlive_their_ends():
    architecture = SMALLEST.replace(sliding_window=600)
    params = varied_params(architecture)
    engine = Engine(build_backbone(architecture, "float32"), params, max_rows=1, prefix_tokens=4 * BLOCK)
    first, second, endless = prompts(lengths=(3 * BLOCK + 1, 2 * BLOCK + 1, 7 * BLOCK + 1))
    few = dataclasses.replace(GREEDY, max_new_tokens=1)
    keys = engine.prefixes.keys
    generate(engine, [first], few)
    generate(engine, [second], few)
    assert engine.prefixes.known(keys(first)) == 2 and engine.prefixes.known(keys(second)) == 2
    for _ in range(3):
        generate(engine, [endless], few)
        assert engine.prefixes.known(keys(endless)) == 4


def test_no_more_rows_than_allowed_and_no_more_slots_than_a_window(engine):
    architecture = SMALLEST.replace(sliding_window=100)
    few = Engine(build_backbone(architecture, "float32"), varied_params(architecture), max_rows=3)
    tasks = [few.submit(Request(prompt=prompt, sampling=GREEDY)) for prompt in prompts()]
    few.step()
    assert sum(map(bool, few._free.tasks)) == 3
    tasks.append(few.submit(Request(prompt=prompts(lengths=(150,))[0], sampling=GREEDY)))
    while not all(task.done for task in tasks):
        few.step()
    assert {few._free._lane.cache.slots(layer) for layer in range(2)} == {100, 256}
    expected = generate(few, [*prompts(), *prompts(lengths=(150,))], GREEDY)
    assert [task.completion for task in tasks] == expected


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


def test_a_biased_request_waits_for_a_batch_that_has_none(engine):
    """Its program has room for a bias, that of the running batch has not."""
    first = engine.submit(Request(prompt=[5, 6], sampling=GREEDY))
    engine.step()
    late = engine.submit(Request(prompt=[5, 6], sampling=GREEDY, logit_bias={42: 100.0}))
    while not (late.done and first.done):
        engine.step()
    assert set(late.completion.tokens) == {42} != set(first.completion.tokens)


def test_streamed_pieces_are_the_answer(speaking):
    vocabulary = speaking.tokenizer.vocabulary_size
    (prompt,) = prompts(vocabulary=vocabulary, lengths=(20,))
    request = Request(prompt=prompt, sampling=GREEDY, stop_ids=[3])
    ((expected,),) = speaking.generate([request])
    deltas = list(speaking.stream(request))
    assert len(deltas) > 3
    assert "".join(delta.text for delta in deltas) == expected.text == deltas[-1].completion.text
    assert [token for delta in deltas for token in delta.tokens] == expected.tokens
    stop = expected.text[len(expected.text) // 2 :][:3]
    strings = StopStrings([stop, *(f"{number}\n" for number in range(10_000))])
    ((cut,),) = speaking.generate([dataclasses.replace(request, stop_strings=strings)])
    assert cut.text == expected.text[: expected.text.index(stop)] and cut.reason == "stop_string"


def test_a_stream_may_be_left(speaking):
    request = Request(prompt=[5, 6, 7], sampling=GREEDY)
    ((expected,),) = speaking.generate([request])
    pieces = speaking.stream(request)
    next(pieces)
    pieces.close()
    assert not speaking.step()
    assert speaking.generate([request]) == [[expected]]


def test_constrained_rows_beside_free_ones(speaking):
    options = ("甲。", "乙，也对", "<eos>")
    stop_ids = [speaking.tokenizer.end_of_turn_id, speaking.tokenizer.eos_id]
    free = [Request(prompt=p, sampling=GREEDY, stop_ids=stop_ids) for p in prompts(lengths=(12, 5, 3))]
    bound = [
        dataclasses.replace(r, sampling=DRAWN, constraint=Choice(options), stream=n) for n, r in enumerate(free * 4)
    ]
    answers = speaking.generate([*free, *bound])
    assert answers[:3] == speaking.generate(free)
    texts = [samples[0].text for samples in answers[3:]]
    assert set(texts) <= set(options) and len(set(texts)) > 1
    assert all(samples[0].reason == "stop" for samples in answers[3:])


def test_log_probabilities_of_overruled_tokens(speaking):
    """Three tokens are hardly room for the pattern, so that its end takes the place of what was drawn."""
    stop_ids = [speaking.tokenizer.end_of_turn_id, speaking.tokenizer.eos_id]
    drawn = dataclasses.replace(DRAWN, max_new_tokens=3)
    request = Request(
        prompt=[5, 6, 7], sampling=drawn, constraint=Regex("[a-z]{4,60}\\."), stop_ids=stop_ids, log_probs=0
    )
    ((answer,),) = speaking.generate([request])
    expected = teacher_forced(speaking, [5, 6, 7], answer)
    np.testing.assert_allclose(
        answer.log_probs, expected[np.arange(len(answer.tokens)), answer.tokens], atol=1e-4, rtol=0
    )


def test_streams_side_by_side(speaking):
    """Whoever steps the engine, each stream gets all of its pieces; a reset ends them with an error."""
    given = [Request(prompt=prompt, sampling=GREEDY) for prompt in prompts(lengths=(12, 5))]
    expected = [samples[0] for samples in speaking.generate(given)]
    streams = [speaking.stream(request) for request in given]
    pieces = [[next(stream)] for stream in streams]
    assert speaking.generate(given) == [[completion] for completion in expected]
    for stream, found in zip(streams, pieces, strict=True):
        found += stream
    assert [found[-1].completion for found in pieces] == expected
    assert [[token for delta in found for token in delta.tokens] for found in pieces] == [e.tokens for e in expected]
    stream = speaking.stream(given[0])
    next(stream)
    with pytest.raises(UserError, match="unclosed group"):
        speaking.generate([dataclasses.replace(given[1], constraint=Regex("(a"), stop_ids=[1])])
    next(stream)  # a mistake of another call is not its own
    speaking.reset()
    with pytest.raises(UserError, match="reset by another call"):
        list(stream)


def test_nothing_comes_after_a_stop_string(speaking):
    request = Request(prompt=[5, 6, 7], sampling=GREEDY, log_probs=0)
    ((expected,),) = speaking.generate([request])
    stop = expected.text[2:5]
    stopping = dataclasses.replace(request, stop_strings=StopStrings([stop]))
    ((answer,),) = speaking.generate([stopping])
    tokens = [token for delta in speaking.stream(stopping) for token in delta.tokens]
    assert answer.tokens == tokens == expected.tokens[: len(tokens)] and len(answer.log_probs) == len(tokens)
    assert stop in speaking.tokenizer.decode(tokens) and stop not in speaking.tokenizer.decode(tokens[:-1])


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


def test_a_broken_sequence_leaves_nothing_in_its_row(engine):
    """Not even for a prompt of one token, with which nothing is read into the row."""
    params = varied_params(SMALLEST)
    params[EMBEDDINGS] = params[EMBEDDINGS].at[96, 0].set(3e38)
    fragile = Engine(engine.backbone, params, max_rows=4)
    for prompt in ([96] * 30, [5], [5, 6, 7]):
        # After two tokens, a prompt may come to 96 by itself.
        task = fragile.submit(Request(prompt=prompt, sampling=dataclasses.replace(GREEDY, max_new_tokens=2)))
        while not task.done:
            fragile.step()
        assert (task.error is not None) == (96 in prompt)


@pytest.mark.parametrize("where", ["_taken", "_read", "_entries"])
def test_an_interruption_leaves_the_engine_usable(engine, where, monkeypatch):
    expected = generate(engine, prompts(), GREEDY)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Batch, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate(engine, prompts(), GREEDY)
    assert generate(engine, prompts(), GREEDY) == expected


MESHES = """
import dataclasses
import sys
import jax
from gemma_keras.inference.engine import Engine
from gemma_keras.models.compute_plan import ComputePlan
from gemma_keras.models.forward import build_backbone
from gemma_keras.models.quantization import quantize_params
from gemma_keras.models.sharding import make_mesh, param_sharding
from tests.inference.models import DRAWN, GREEDY, SMALLEST, prompts, varied_params
from tests.inference.test_engine import generate

architecture = SMALLEST.replace(vocabulary_size=96)
given = [[token % 96 for token in prompt] for prompt in prompts(lengths=(37, 1, 12, 5, 600))]
backbone = build_backbone(architecture, "float32")
plain = varied_params(architecture)
beams = dataclasses.replace(GREEDY, max_new_tokens=10, num_beams=2)
search = dataclasses.replace(GREEDY, max_new_tokens=10, penalty_alpha=0.5, top_k=3)
everything = [(plain, (GREEDY, DRAWN, beams, search)), (quantize_params(dict(plain)), (GREEDY,))]
meshes = ((1, 2), (2, 4))
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
print("all meshes answer alike")
"""


@pytest.mark.long
@pytest.mark.parametrize("amount", ["short", "all"])
def test_meshes_answer_as_one_device(amount):
    """In another process, because the number of devices is fixed when JAX starts."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", MESHES, amount], env=environment, capture_output=True, text=True, timeout=600
    )
    assert "all meshes answer alike" in done.stdout, done.stdout + done.stderr
