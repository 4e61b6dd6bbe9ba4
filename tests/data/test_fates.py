import numpy as np

from gemma_keras.data.pools.outcomes import NOT_DRAWN, UNDECIDED, USED, Fates


def test_what_is_decided_stays_but_what_is_used_has_the_last_word():
    fates = Fates(4)
    fates.extend(["empty", UNDECIDED])
    fates.settle(np.array([True, False, False, False, True, False]), "duplicate")
    fates.settle(np.array([0, 1], np.int32), NOT_DRAWN)
    assert fates.count() == {UNDECIDED: 3, "duplicate": 1, NOT_DRAWN: 1, "empty": 1} and len(fates) == 6
    fates.remove(2, "too_long")
    fates.remove(2, "no_answer")
    fates.use(3)
    fates.remove(3, "too_long")
    assert fates.usable(np.array([5, 4, 3, 2])).tolist() == [5, 3]
    assert fates.used().tolist() == [False, False, False, True, False, False]
    fates.settle(fates.undecided(), NOT_DRAWN)
    assert fates.count() == {USED: 1, "duplicate": 1, NOT_DRAWN: 2, "empty": 1, "no_answer": 1}


def test_a_row_is_used_if_any_of_its_records_is():
    fates = Fates()
    fates.extend(["empty", USED, "duplicate", "empty", UNDECIDED])
    rows = fates.count_rows(np.array([0, 2, 4]), np.array([1, 3, 1]))
    assert rows == {USED: 1, "duplicate": 3, UNDECIDED: 1}
