import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_keras.config.errors import UserError
from gemma_keras.config.schema import SystemPromptConfig
from gemma_keras.data.mixing import interleave, largest_remainder
from gemma_keras.data.system_prompts import FIXED_PROMPTS, assign_kinds, with_system_prompt


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8), st.integers(0, 100_000))
def test_counts_are_exact(shares, total):
    counts = largest_remainder(shares, total)
    assert sum(counts) == total
    assert all(abs(c - s / sum(shares) * total) < 1 + 1e-6 for c, s in zip(counts, shares, strict=True))


def test_counts_of_the_recipe():
    assert largest_remainder([1, 1], 80_000) == [40_000, 40_000]
    assert largest_remainder([0.3853, 0.367, 0.2476], 24_000) == [9248, 8809, 5943]
    assert largest_remainder([0.0, 1.0], 3) == [0, 3]


def test_order_spreads_the_corpora():
    order = interleave([600, 300, 100], np.random.default_rng(0))
    assert sorted(order) == [(c, k) for c, n in enumerate([600, 300, 100]) for k in range(n)]
    for start in range(0, 1000, 100):
        window = [corpus for corpus, _ in order[start : start + 100]]
        assert abs(window.count(0) - 60) <= 3 and abs(window.count(2) - 10) <= 3
    assert [k for c, k in order if c == 1] == list(range(300))
    assert interleave([], np.random.default_rng(0)) == [] == interleave([0], np.random.default_rng(0))


def test_system_prompts_in_exact_shares():
    chat = [{"role": "user", "content": "x"}, {"role": "model", "content": "y"}]
    own = [{"role": "system", "content": "z"}, *chat]
    kinds = assign_kinds([chat] * 10 + [own] * 3, SystemPromptConfig(none=0.3, fixed=0.7), np.random.default_rng(1))
    assert kinds[10:] == ["own"] * 3
    assert (kinds.count("none"), kinds.count("fixed")) == (3, 7)
    assert with_system_prompt(chat, "none", 5) is chat
    assert with_system_prompt(chat, "fixed", 16)[0] == {"role": "system", "content": FIXED_PROMPTS[1]}
    assert len(set(FIXED_PROMPTS)) == 15


@pytest.mark.parametrize("shares", [(0.5, 0.4), (1.5, -0.5)])
def test_shares_must_add_up(shares):
    with pytest.raises(UserError, match="add up to 1"):
        assign_kinds([], SystemPromptConfig(none=shares[0], fixed=shares[1]), np.random.default_rng(0))
