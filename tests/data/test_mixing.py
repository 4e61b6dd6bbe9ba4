import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gemma_keras.data.mixing.shares import grouped_counts, interleave, largest_remainder


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8), st.integers(0, 100_000))
def test_counts_are_exact(shares, total):
    counts = largest_remainder(shares, total)
    assert sum(counts) == total
    assert all(abs(c - s / sum(shares) * total) < 1 + 1e-6 for c, s in zip(counts, shares, strict=True))


def test_counts_of_the_recipe():
    assert largest_remainder([1, 1], 80_000) == [40_000, 40_000]
    assert largest_remainder([0.3853, 0.367, 0.2476], 24_000) == [9248, 8809, 5943]
    assert largest_remainder([0.0, 1.0], 3) == [0, 3]


def test_groups_are_exact_and_so_are_their_members():
    shares = [0.25, 0.25, *(0.3 * size / 41_520 for size in (16_000, 15_238, 10_282)), *[0.2 / 3] * 3]
    groups = ["one"] * 2 + ["two"] * 3 + ["three"] * 3
    counts = grouped_counts(shares, groups, 80_000)
    assert counts == [20_000, 20_000, 9_249, 8_808, 5_943, 5_334, 5_333, 5_333]


def test_random_sampling_is_exact_between_groups_only():
    shares, groups = [0.35, 0.35, 0.15, 0.15], ["a", "a", "b", "b"]
    drawn = [grouped_counts(shares, groups, 10_000, np.random.default_rng(seed)) for seed in range(40)]
    assert {(a + b, c + d) for a, b, c, d in drawn} == {(7_000, 3_000)}
    firsts = np.array([counts[0] for counts in drawn])
    # Binomial(7000, 1/2): mean 3500, standard deviation 41.8; forty draws lie around it, and differ.
    assert abs(firsts.mean() - 3_500) < 5 * 41.8 / 40**0.5 and 20 < firsts.std() < 70


def test_order_spreads_the_corpora():
    corpora, places = interleave([600, 300, 100], np.random.default_rng(0))
    order = list(zip(corpora.tolist(), places.tolist(), strict=True))
    assert sorted(order) == [(c, k) for c, n in enumerate([600, 300, 100]) for k in range(n)]
    for start in range(0, 1000, 100):
        window = corpora[start : start + 100].tolist()
        assert abs(window.count(0) - 60) <= 3 and abs(window.count(2) - 10) <= 3
    assert [k for c, k in order if c == 1] == list(range(300))
    assert all(len(interleave(counts, np.random.default_rng(0))[0]) == 0 for counts in ([], [0]))


def test_long_orders_are_made_stretch_by_stretch():
    counts = [150_000, 80_000, 7, 1]
    corpora, places = interleave(counts, np.random.default_rng(0))
    for number, count in enumerate(counts):
        assert places[corpora == number].tolist() == list(range(count))
    assert all(abs((corpora[start : start + 1000] == 0).sum() - 652) < 5 for start in range(0, 230_000, 1000))
