"""Chunked log-probabilities against the whole matrix of logits, torch, and themselves on other meshes."""

import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from gemma_keras.models import log_probs as module
from gemma_keras.models.log_probs import LOGITS_BYTES, MIN_CHUNK, default_chunk, token_scores

BATCH, TIME, DIM, VOCABULARY = 3, 7, 16, 30


@pytest.fixture
def case(rng):
    hidden = jnp.asarray(rng.normal(size=(BATCH, TIME, DIM)), jnp.float32)
    embeddings = jnp.asarray(rng.normal(size=(VOCABULARY, DIM)), jnp.float32)
    return hidden, embeddings, jnp.asarray(rng.integers(0, VOCABULARY, (BATCH, TIME)), jnp.int32)


@pytest.fixture
def weights(rng):
    return jnp.asarray(rng.uniform(0.5, 2.0, (BATCH, TIME)) * (rng.random((BATCH, TIME)) < 0.4), jnp.float32)


@pytest.fixture
def cotangents(rng):
    return jnp.asarray(rng.normal(size=(BATCH, TIME)), jnp.float32)


def naive(hidden, embeddings, targets, cap):
    values = jnp.einsum("btd,vd->btv", hidden, embeddings)
    values = values if cap is None else cap * jnp.tanh(values / cap)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(values), targets[..., None], -1)[..., 0]
    return log_probs, jnp.argmax(values, -1) == targets


def close(actual, expected, tolerance):
    """Within `tolerance` of the largest expected value."""
    expected = np.asarray(expected, np.float64)
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), expected, rtol=0, atol=tolerance * np.abs(expected).max()
    )


def gradients(function, wanted, cotangents, *arrays):
    """Gradients of `function(hidden, embeddings)[0]`: of hidden, of the embeddings, or of both."""
    numbers = {"hidden": (0,), "embeddings": (1,), "both": (0, 1)}[wanted]
    return jax.jit(jax.grad(lambda *a: jnp.sum(cotangents * function(*a)[0]), numbers))(*arrays)


@pytest.mark.parametrize("cap", [None, 4.0])
@pytest.mark.parametrize("chunk, parts", [(None, None), (1, 1), (4, 1), (4, 5), (21, 30)])
def test_scores_and_gradients_equal_log_softmax(case, cotangents, cap, chunk, parts):
    hidden, embeddings, targets = case

    def ours(hidden, embeddings):
        return token_scores(hidden, embeddings, targets, final_logit_soft_cap=cap, chunk=chunk, parts=parts)

    def theirs(hidden, embeddings):
        return naive(hidden, embeddings, targets, cap)

    log_probs, is_argmax = ours(hidden, embeddings)
    expected, expected_argmax = theirs(hidden, embeddings)
    assert log_probs.dtype == jnp.float32 and is_argmax.dtype == bool
    close(log_probs, expected, 1e-6)
    np.testing.assert_array_equal(is_argmax, expected_argmax)
    for wanted in ("hidden", "embeddings", "both"):
        for one, other in zip(
            gradients(ours, wanted, cotangents, hidden, embeddings),
            gradients(theirs, wanted, cotangents, hidden, embeddings),
        ):
            close(one, other, 1e-5)


@pytest.mark.parametrize("cap", [None, 30.0])
def test_scores_and_gradients_equal_torch_in_float64(rng, cap):
    torch = pytest.importorskip("torch")
    hidden, embeddings = rng.normal(size=(2, 50, 64)), rng.normal(size=(301, 64))
    targets, cotangents = rng.integers(0, 301, (2, 50)), rng.normal(size=(2, 50))
    th, te = torch.tensor(hidden, requires_grad=True), torch.tensor(embeddings, requires_grad=True)
    logits = (th @ te.T).reshape(100, 301)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    expected = -torch.nn.functional.cross_entropy(logits, torch.tensor(targets).reshape(-1), reduction="none")
    (expected * torch.tensor(cotangents).reshape(-1)).sum().backward()

    def ours(hidden, embeddings):
        return token_scores(hidden, embeddings, jnp.asarray(targets), final_logit_soft_cap=cap, chunk=17)

    arrays = jnp.asarray(hidden, jnp.float32), jnp.asarray(embeddings, jnp.float32)
    cotangents = jnp.asarray(cotangents, jnp.float32)
    close(ours(*arrays)[0], expected.detach().reshape(2, 50), 1e-5)
    (frozen,) = gradients(ours, "hidden", cotangents, *arrays)
    d_hidden, d_embeddings = gradients(ours, "both", cotangents, *arrays)
    close(frozen, th.grad, 1e-5)
    close(d_hidden, th.grad, 1e-5)
    close(d_embeddings, te.grad, 1e-5)


@pytest.mark.parametrize("chunk, parts", [(1, 1), (4, 3)])
@pytest.mark.parametrize("wanted", ["hidden", "both"])
def test_weights_of_zero_equal_a_mask_of_all_scores(case, weights, cotangents, chunk, parts, wanted):
    hidden, embeddings, targets = case

    def subset(hidden, embeddings):
        return token_scores(hidden, embeddings, targets, weights, final_logit_soft_cap=4.0, chunk=chunk, parts=parts)

    def masked(hidden, embeddings):
        log_probs, is_argmax = naive(hidden, embeddings, targets, 4.0)
        return jnp.where(weights == 0, 0.0, log_probs), is_argmax & (weights != 0)

    assert 0 < np.count_nonzero(weights) < weights.size
    for one, other in zip(subset(hidden, embeddings), masked(hidden, embeddings)):
        np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_array_equal(subset(hidden, embeddings)[0] == 0, weights == 0)
    for one, other in zip(
        gradients(subset, wanted, cotangents, hidden, embeddings),
        gradients(masked, wanted, cotangents, hidden, embeddings),
    ):
        close(one, other, 1e-5)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("wanted", ["hidden", "both"])
def test_nothing_leaks_from_positions_of_weight_zero(case, weights, cotangents, bad, wanted):
    hidden, embeddings, targets = case
    poisoned = jnp.where((weights == 0)[..., None], bad, hidden)

    def ours(hidden, embeddings):
        return token_scores(hidden, embeddings, targets, weights, final_logit_soft_cap=30.0, chunk=4)

    for one, other in zip(ours(poisoned, embeddings), ours(hidden, embeddings)):
        np.testing.assert_array_equal(one, other)
    poisoned_cotangents = jnp.where(weights == 0, bad, cotangents)
    for one, other in zip(
        gradients(ours, wanted, poisoned_cotangents, poisoned, embeddings),
        gradients(ours, wanted, cotangents, hidden, embeddings),
    ):
        np.testing.assert_array_equal(one, other)
        assert np.isfinite(one).all()


@pytest.mark.parametrize("wanted", ["hidden", "both"])
def test_all_weights_zero(case, cotangents, wanted):
    hidden, embeddings, targets = case

    def ours(hidden, embeddings):
        zeros = jnp.zeros(targets.shape)
        return token_scores(hidden, embeddings, targets, zeros, final_logit_soft_cap=30.0, chunk=4)

    log_probs, is_argmax = ours(hidden, embeddings)
    assert not np.any(log_probs) and not np.any(is_argmax)
    assert not any(np.any(g) for g in gradients(ours, wanted, cotangents, hidden, embeddings))


@pytest.mark.parametrize("weight", [None, 1.0])
def test_one_token(case, weight):
    hidden, embeddings, targets = (x[:1, :1] if x.ndim == 3 else x for x in case)
    targets = targets[:1, :1]
    weights = None if weight is None else jnp.full((1, 1), weight)
    log_probs, _ = token_scores(hidden, embeddings, targets, weights, final_logit_soft_cap=None)
    close(log_probs, naive(hidden, embeddings, targets, None)[0], 1e-6)


def test_every_token_with_the_highest_logit_is_most_likely():
    embeddings = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
    hidden = jnp.broadcast_to(jnp.array([2.0, 1.0]), (1, 4, 2))
    _, is_argmax = token_scores(hidden, embeddings, jnp.arange(4)[None], final_logit_soft_cap=30.0, chunk=2, parts=2)
    assert is_argmax.tolist() == [[True, False, True, False]]


def test_only_chunks_with_scored_tokens_are_computed(case, cotangents, monkeypatch):
    hidden, embeddings, targets = case
    runs = []
    logits = module._logits

    def counted(*arguments):
        jax.debug.callback(lambda: runs.append(1))
        return logits(*arguments)

    monkeypatch.setattr(module, "_logits", counted)
    for scored, chunk, expected in [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2), (21, 4, 6), (7, 1, 7)]:
        weights = jnp.zeros(BATCH * TIME).at[::-1].set((jnp.arange(BATCH * TIME) < scored) * 0.5).reshape(BATCH, TIME)

        def ours(hidden, embeddings, weights=weights, chunk=chunk):
            return token_scores(hidden, embeddings, targets, weights, final_logit_soft_cap=30.0, chunk=chunk)

        for wanted, passes in [("hidden", 1), ("both", 2)]:
            runs.clear()
            jax.block_until_ready(gradients(ours, wanted, cotangents, hidden, embeddings))
            jax.effects_barrier()
            assert len(runs) == passes * expected, (scored, chunk, wanted)


# What the jaxpr says: operations and sizes of arrays.


def inner(equation):
    """(jaxpr, times it runs) of everything inside an equation; of the branches of a `cond`, all."""
    times = equation.params.get("length", 1)
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr, times
            elif isinstance(item, core.Jaxpr):
                yield item, times


def operations(jaxpr) -> int:
    """2·M·N·K of every matrix product, times the trips of the scans around it; of a `cond`, the dearest branch."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * depth * equation.outvars[0].aval.size
            continue
        inside = [times * operations(jaxpr) for jaxpr, times in inner(equation)]
        total += max(inside, default=0) if equation.primitive.name == "cond" else sum(inside)
    return total


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inside, _ in inner(equation):
            yield from equations(inside)


def jaxpr_of(wanted, cap, with_weights, dtype=jnp.float32, parts=1):
    """64 tokens in 4 chunks, D = 8, V = 96."""
    weights = jnp.ones((2, 32)) if with_weights else None

    @jax.jit  # what is differentiated must be known inside a jit
    def scores(hidden, embeddings):
        return token_scores(
            hidden, embeddings, jnp.zeros((2, 32), jnp.int32), weights, final_logit_soft_cap=cap, chunk=16, parts=parts
        )

    def grads(hidden, embeddings):
        return gradients(scores, wanted, 1.0, hidden, embeddings)

    function = scores if wanted == "nothing" else grads
    hidden, embeddings = jax.ShapeDtypeStruct((2, 32, 8), dtype), jax.ShapeDtypeStruct((96, 8), jnp.float32)
    return jax.make_jaxpr(function)(hidden, embeddings).jaxpr


@pytest.mark.parametrize("with_weights", [False, True])
@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("wanted, per_entry", [("nothing", 2), ("hidden", 4), ("both", 8)])
def test_operations_of_the_matrix_products(wanted, per_entry, parts, cap, with_weights):
    assert operations(jaxpr_of(wanted, cap, with_weights, parts=parts)) == per_entry * 64 * 96 * 8


@pytest.mark.parametrize("with_weights", [False, True])
@pytest.mark.parametrize("wanted, parts, largest", [
    ("nothing", 1, 16 * 96), ("hidden", 1, 16 * 96), ("both", 1, 16 * 96), ("nothing", 4, 96 * 8), ("hidden", 4, 96 * 8),
])  # fmt: skip
def test_no_array_is_larger_than_the_logits_of_a_chunk(wanted, parts, largest, with_weights):
    """Or, in parts, than the embeddings [96, 8]."""
    sizes = {
        variable.aval.size
        for equation in equations(jaxpr_of(wanted, 30.0, with_weights, parts=parts))
        for variable in (*equation.invars, *equation.outvars)
    }
    assert max(sizes) == largest


@pytest.mark.parametrize("wanted", ["hidden", "both"])
def test_bfloat16_products_are_summed_in_float32(wanted):
    products = [e for e in equations(jaxpr_of(wanted, 30.0, True, jnp.bfloat16)) if e.primitive.name == "dot_general"]
    assert len(products) == {"hidden": 2, "both": 4}[wanted]
    for product in products:
        assert [v.aval.dtype for v in product.invars] == [jnp.bfloat16, jnp.bfloat16]
        assert product.outvars[0].aval.dtype == jnp.float32


def test_bfloat16_is_near_float32_of_the_same_values(rng, cotangents):
    hidden = jnp.asarray(rng.normal(size=(3, 7, 64)), jnp.bfloat16)
    embeddings = jnp.asarray(rng.normal(size=(301, 64)), jnp.bfloat16)
    targets = jnp.asarray(rng.integers(0, 301, (3, 7)))

    def ours(hidden, embeddings):
        return token_scores(hidden, embeddings, targets, final_logit_soft_cap=30.0, chunk=4)

    wide = hidden.astype(jnp.float32), embeddings.astype(jnp.float32)
    log_probs, _ = ours(hidden, embeddings)
    assert log_probs.dtype == jnp.float32
    close(log_probs, ours(*wide)[0], 1e-5)
    for wanted in ("hidden", "both"):
        for one, other in zip(
            gradients(ours, wanted, cotangents, hidden, embeddings), gradients(ours, wanted, cotangents, *wide)
        ):
            assert one.dtype == jnp.bfloat16
            close(one, other, 1e-2)  # gradients of logits, and of each token, are rounded to 8 bits: 2 x 0.4 %


def test_bfloat16_gradients_of_likely_tokens_are_near_those_of_float32(rng):
    """Each for itself: rows of the embeddings that they are made of cancel out but for a thousandth."""
    embeddings = jnp.asarray(rng.normal(size=(300, 64)), jnp.bfloat16)
    targets = jnp.asarray(rng.integers(0, 300, (1, 40)))
    hidden = (0.25 * embeddings[targets] + 0.2 * rng.normal(size=(1, 40, 64))).astype(jnp.bfloat16)

    def ours(hidden, embeddings):
        return token_scores(hidden, embeddings, targets, final_logit_soft_cap=30.0, chunk=16, parts=5)

    assert np.median(ours(hidden, embeddings)[0]) > -0.01
    ones, wide = jnp.ones(targets.shape), (hidden.astype(jnp.float32), embeddings.astype(jnp.float32))
    narrow, exact = (gradients(ours, "hidden", ones, *arrays)[0][0] for arrays in ((hidden, embeddings), wide))
    for one, other in zip(narrow, exact, strict=True):
        close(one, other, 2e-2)


def test_no_more_logits_at_once_than_the_budget():
    for vocabulary, platform in [(1000, "cpu"), (4000, "cpu"), (262_144, "cpu"), (32_000, "tpu"), (256_128, "gpu")]:
        kind = "cpu" if platform == "cpu" else "other"
        chunk, parts = default_chunk(vocabulary, platform)
        assert vocabulary % parts == 0 and chunk >= MIN_CHUNK[kind]
        assert parts == 1 or chunk == MIN_CHUNK[kind]
        assert 4 * chunk * vocabulary // parts < 2 * LOGITS_BYTES[kind]
    assert default_chunk(1000, "cpu")[0] > MIN_CHUNK["cpu"]
    assert default_chunk(262_208, "cpu")[1] > 32  # rows that no token belongs to divide, too


def test_examples_of_docstrings():
    assert not doctest.testmod(module).failed
