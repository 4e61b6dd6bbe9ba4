"""Rows that decode side by side: who joins, who waits, and what they share."""

import dataclasses
import doctest

import jax
import pytest

from gemma_keras.inference import buckets
from gemma_keras.inference.engine import Engine, with_streams
from gemma_keras.inference.prefix_cache import BLOCK
from gemma_keras.inference.requests import Request
from gemma_keras.models.architecture import LayerSpec
from gemma_keras.models.forward import EMBEDDINGS, build_backbone
from tests.inference.models import DRAWN, GREEDY, SMALLEST, generate, prompts, varied_params


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


def test_a_biased_request_waits_for_a_batch_that_has_none(engine):
    """Its program has room for a bias, that of the running batch has not."""
    first = engine.submit(Request(prompt=[5, 6], sampling=GREEDY))
    engine.step()
    late = engine.submit(Request(prompt=[5, 6], sampling=GREEDY, logit_bias={42: 100.0}))
    while not (late.done and first.done):
        engine.step()
    assert set(late.completion.tokens) == {42} != set(first.completion.tokens)


@pytest.mark.parametrize("most", [5, 20])
def test_rows_that_are_no_power_of_two(engine, most):
    """6 and 12 rows; prompts are read in groups of 8, 2 and 1, the long ones piece by piece."""
    given = prompts(lengths=(20, 3, 31, 9, 17, 600, 25, 2, 560, 28, 11))
    alike = Engine(engine.backbone, engine.params, max_rows=most)
    assert generate(alike, given, GREEDY, stop_ids=[3]) == [
        generate(engine, [prompt], GREEDY, stop_ids=[3])[0] for prompt in given
    ]
    assert len(alike._free.sequences) == {5: 6, 20: 12}[most]


def test_examples_of_docstrings():
    assert doctest.testmod(buckets) == (0, 3)


def test_no_more_rows_than_allowed_and_no_more_slots_than_a_window():
    architecture = SMALLEST.replace(sliding_window=100)
    few = Engine(build_backbone(architecture, "float32"), varied_params(architecture), max_rows=3)
    tasks = [few.submit(Request(prompt=prompt, sampling=GREEDY)) for prompt in prompts()]
    few.step()
    assert sum(map(bool, few._free.sequences)) == 3
    tasks.append(few.submit(Request(prompt=prompts(lengths=(150,))[0], sampling=GREEDY)))
    while not all(task.done for task in tasks):
        few.step()
    assert {few._free._state.cache.slots(layer) for layer in range(2)} == {100, 256}
    expected = generate(few, [*prompts(), *prompts(lengths=(150,))], GREEDY)
    assert [task.completion for task in tasks] == expected


def test_lengths_of_one_bucket_share_programs():
    """With a backbone of its own, because other tests compile for the one that they share what is counted here."""
    engine = Engine(build_backbone(SMALLEST, "float32"), varied_params(SMALLEST), max_rows=4)
    compiled = []

    def record(event, duration, fun_name="", **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(fun_name)

    generate(engine, prompts(lengths=(20, 5, 9, 2)), GREEDY, stop_ids=[1])
    jax.monitoring.register_event_duration_secs_listener(record)
    try:
        generate(engine, prompts(lengths=(3, 30, 2, 8)), GREEDY, stop_ids=[1, 2, 3])
        generate(Engine(engine.backbone, dict(engine.params)), prompts(lengths=(31, 4, 4, 4)), DRAWN)
        assert compiled == []
        generate(engine, prompts(lengths=(90, 4, 4, 4)), GREEDY, stop_ids=[1])
        assert 0 < len(compiled) <= 6
    finally:
        jax.monitoring.unregister_event_duration_listener(record)


@pytest.fixture(scope="module")
def windows() -> Engine:
    """Layers with a window of 8, one of 100, and none: their rings lose a prompt's beginning while it is read."""
    pattern = (LayerSpec(window=8), LayerSpec(window=100), LayerSpec())
    architecture = SMALLEST.replace(num_layers=3, pattern=pattern)
    return Engine(build_backbone(architecture, "float32"), varied_params(architecture), max_rows=4)


@pytest.mark.parametrize("blocks", [2, 9], ids=["one piece", "two pieces"])
def test_prompts_that_begin_alike_are_read_once(windows, blocks):
    system = prompts(lengths=(blocks * BLOCK + 10,))[0]
    given = [system + tail for tail in prompts(lengths=(5, 30, 80), seed=1)] + [system[:BLOCK], prompts()[0]]
    expected = generate(windows, given, GREEDY)
    keeping = Engine(windows.backbone, windows.params, prefix_tokens=16 * BLOCK, max_rows=4)
    assert generate(keeping, given, GREEDY) == expected
    assert keeping.prefixes.hits == 2 * blocks * BLOCK  # the second and third wait for the first
    assert generate(keeping, given[::-1], GREEDY) == expected[::-1]
    # The last one of each prompt is read again, for the first step; of `system[:BLOCK]` nothing else is left.
    assert keeping.prefixes.hits == (2 * blocks + 3 * blocks + 1) * BLOCK


def test_what_was_kept_is_lost_to_others_block_by_block(windows):
    """Room for 10 blocks, prompts of 7 to 12: hits are of what is left of a beginning, and answers as without."""
    keeping = Engine(windows.backbone, windows.params, prefix_tokens=10 * BLOCK, max_rows=2)
    first, second = prompts(lengths=(8 * BLOCK, 9 * BLOCK))
    given = [first + [5] * 70, second + [6] * 200, first[: 7 * BLOCK] + [7] * 9, [*second, 8, 9], first + [5] * 70]
    hits = []
    for prompt in given:
        before = keeping.prefixes.hits
        assert generate(keeping, [prompt], GREEDY) == generate(windows, [prompt], GREEDY)
        hits.append((keeping.prefixes.hits - before) // BLOCK)
    assert hits == [0, 0, 0, 3, 1]
    assert generate(keeping, given[:2], GREEDY) == generate(windows, given[:2], GREEDY)


def test_whoever_waits_behind_a_shared_beginning_has_room():
    """The second prompt waits for the first one's beginning, so the third, which is longer, takes its row."""
    system, long = prompts(lengths=(BLOCK + 6, 300))
    requests = [Request(prompt=prompt, sampling=GREEDY) for prompt in ([*system, 5], [*system, 6, 7], long)]
    plain = Engine(build_backbone(SMALLEST, "float32"), varied_params(SMALLEST), max_rows=2)
    keeping = Engine(plain.backbone, plain.params, prefix_tokens=8 * BLOCK, max_rows=2)
    assert keeping.generate(requests) == [plain.generate([request])[0] for request in requests]


def test_kept_beginnings_of_prompts_outlive_their_ends():
    params = varied_params(SMALLEST)
    engine = Engine(build_backbone(SMALLEST, "float32"), params, max_rows=1, prefix_tokens=4 * BLOCK)
    first, second, endless = prompts(lengths=(3 * BLOCK + 1, 2 * BLOCK + 1, 7 * BLOCK + 1))
    few = dataclasses.replace(GREEDY, max_new_tokens=1)
    keys = engine.prefixes.keys
    generate(engine, [first], few)
    generate(engine, [second], few)
    assert engine.prefixes.known(keys(first)) == 2 and engine.prefixes.known(keys(second)) == 2
    for _ in range(3):
        generate(engine, [endless], few)
        assert engine.prefixes.known(keys(endless)) == 4


def test_a_broken_sequence_leaves_nothing_in_its_row(engine):
    """Not even for a prompt of one token, with which nothing is read into the row, nor while a neighbour runs on."""
    params = varied_params(SMALLEST)
    params[EMBEDDINGS] = params[EMBEDDINGS].at[96, 0].set(3e38)
    fragile = Engine(engine.backbone, params, max_rows=4)
    for prompt in ([96] * 30, [5], [5, 6, 7]):
        # After two tokens, a prompt may come to 96 by itself.
        task = fragile.submit(Request(prompt=prompt, sampling=dataclasses.replace(GREEDY, max_new_tokens=2)))
        while not task.done:
            fragile.step()
        assert (task.error is not None) == (96 in prompt)
    never = {96: -100.0}
    expected = generate(fragile, [[5, 6, 7], [5]], GREEDY, logit_bias=never)
    broken, neighbour = (
        fragile.submit(Request(prompt=prompt, sampling=GREEDY, logit_bias=never)) for prompt in ([96] * 30, [5, 6, 7])
    )
    while not broken.done:
        fragile.step()
    fragile.step()  # what it computes in the free row must not be broken again
    late = fragile.submit(Request(prompt=[5], sampling=GREEDY, logit_bias=never))
    while not (neighbour.done and late.done):
        fragile.step()
    assert broken.error is not None
    assert [neighbour.completion, late.completion] == expected
