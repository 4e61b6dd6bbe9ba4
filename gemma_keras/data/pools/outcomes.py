"""What becomes of the records of a pool, a byte a record."""

from array import array
from collections import Counter
from collections.abc import Iterable

import numpy as np

UNDECIDED, USED, NOT_DRAWN = "", "used", "not_drawn"
SET_APART = "set_apart_for_validation"

_UNDECIDED, _USED = 0, 1


class Fates:
    """The fate of each record by its place: `UNDECIDED`, `USED`, or the name of the rule that keeps it out.

    Nobody else knows the codes that stand for these names in memory.
    """

    def __init__(self, count: int = 0):
        """`count` undecided records, to which others may be added."""
        self._names = [UNDECIDED, USED]
        self._codes = array("B", bytes(count))

    def __len__(self) -> int:
        return len(self._codes)

    def extend(self, fates: Iterable[str]) -> None:
        self._codes.extend(map(self._code, fates))

    def undecided(self) -> np.ndarray:
        """bool[n]: the records that nothing has decided yet."""
        return self._array() == _UNDECIDED

    def used(self) -> np.ndarray:
        """bool[n]: the records that are used."""
        return self._array() == _USED

    def usable(self, places: np.ndarray) -> np.ndarray:
        """Those of `places` that are used, or may yet be."""
        return places[self._array()[places] <= _USED]

    def settle(self, which: np.ndarray, fate: str) -> None:
        """Gives `fate` to those of `which`, bool[n] or places, that are undecided."""
        codes, undecided = self._array(), self.undecided()
        codes[which & undecided if which.dtype == bool else which[undecided[which]]] = self._code(fate)

    def use(self, place: int) -> None:
        """The record is used, whatever spoke against it elsewhere: it may fit into one slot and not into another."""
        self._codes[place] = _USED

    def remove(self, place: int, rule: str) -> None:
        """The record proves unusable by `rule`, unless it is used already."""
        if self._codes[place] != _USED:
            self._codes[place] = self._code(rule)

    def count(self) -> Counter[str]:
        """Number of records by fate."""
        return self._named(np.bincount(self._array(), minlength=len(self._names)))

    def count_rows(self, starts: np.ndarray, sizes: np.ndarray) -> Counter[str]:
        """Number of source rows by fate: `USED` if any record of the row is used, else the fate of its first record.

        Args:
            starts: where the records of each row begin, i64[rows]; those of one row stand together.
            sizes: as how many source rows each counts, i64[rows].
        """
        codes = self._array()
        used = np.logical_or.reduceat(codes == _USED, starts)
        return self._named(np.bincount(np.where(used, _USED, codes[starts]), sizes, len(self._names)))

    def _named(self, counts: np.ndarray) -> Counter[str]:
        return +Counter({name: int(count) for name, count in zip(self._names, counts.tolist(), strict=True)})

    def _array(self) -> np.ndarray:
        return np.frombuffer(self._codes, np.uint8)

    def _code(self, fate: str) -> int:
        if fate not in self._names:
            self._names.append(fate)
        return self._names.index(fate)
