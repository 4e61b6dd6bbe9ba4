"""What becomes of the source rows of a corpus before they are records: counted, and told where much of it is set aside."""

import dataclasses
from collections import Counter

from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import CorpusConfig
from gemma_keras.data.cleaning.rules import EMPTY, is_empty
from gemma_keras.data.pools.outcomes import NOT_DRAWN, SET_APART, UNDECIDED, USED
from gemma_keras.data.sources import OTHER_KIND, SourceRow

MUCH = 0.1
"""Share of a corpus's rows from which on it is told that they are removed."""

_NOT_TOLD = (UNDECIDED, USED, NOT_DRAWN, SET_APART, OTHER_KIND)
_REASONS_TOLD = 3
_REASONS_KEPT = 100
_OTHER = "other reasons"


@dataclasses.dataclass(slots=True, kw_only=True)
class Account:
    """The rows of one corpus: `rows_in` of `files`, of which rules `skipped` some, and others were quarantined for `reasons`.

    `mended` counts its records by the rule that mended them.
    """

    corpus: CorpusConfig
    files: list[str] = dataclasses.field(default_factory=list)
    rows_in: int = 0
    skipped: Counter[str] = dataclasses.field(default_factory=Counter)
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)
    mended: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def quarantined(self) -> int:
        """Number of source rows that cannot be read."""
        return self.reasons.total()

    def add(self, row: SourceRow) -> None:
        self.rows_in += row.rows
        if self.files[-1:] != [row.file]:
            self.files.append(row.file)
        if row.quarantined:
            # Without what is particular to the row, so that equal causes are counted together. Reasons that quote their row
            # may still be as many as the rows.
            reason = row.quarantined.split(":")[0][:80]
            known = reason in self.reasons or len(self.reasons) < _REASONS_KEPT
            self.reasons[reason if known else _OTHER] += row.rows
        elif not row.records:
            self.skipped[row.skipped or EMPTY] += row.rows

    def add_visible(self, row: SourceRow) -> int:
        """As `add`, but a row whose records are all empty is removed, too; returns the number of those that are not."""
        self.add(row)
        visible = sum(not is_empty(record) for record in row.records)
        if row.records and not visible:
            self.skipped[EMPTY] += row.rows
        return visible

    def nothing_usable(self) -> UserError:
        """The error of a corpus that gives no record."""
        told = told_reasons(self.reasons, self.skipped)
        shown = ", ".join(self.files[:3]) + (", ..." if len(self.files) > 3 else "")
        return UserError(
            f"no usable row of corpus {self.corpus.name!r} in {shown}: of {self.rows_in} rows {told}; check that the corpus's "
            "name fits the files"
            + (f" and its kinds ({', '.join(self.corpus.kinds)}) what they hold" if self.corpus.kinds else "")
        )


def told_reasons(reasons: Counter[str], removed: Counter[str]) -> str:
    """Why rows are set aside, the commonest reasons of both kinds first.

    >>> told_reasons(Counter({"no output": 3}), Counter({"empty": 1}))
    '3 cannot be read (3 no output), 1 are removed (1 empty)'
    """
    parts = []
    for counts, what in ((reasons, "cannot be read"), (removed, "are removed")):
        if counts:
            shown = ", ".join(f"{count} {reason}" for reason, count in counts.most_common(_REASONS_TOLD))
            parts.append(f"{counts.total()} {what} ({shown}{', ...' if len(counts) > _REASONS_TOLD else ''})")
    return ", ".join(parts)


def told_set_aside(account: Account, fates: Counter[str]) -> str:
    """A line about the rows of a corpus that are set aside; empty where all can be read and rules remove few.

    Args:
        fates: number of source rows by what became of them.
    """
    removed = Counter({fate: count for fate, count in fates.items() if fate not in _NOT_TOLD})
    count = account.quarantined + removed.total()
    if not account.quarantined and count < max(1, MUCH * account.rows_in):
        return ""
    more = "; see quarantine.jsonl" if account.quarantined else ""
    told = told_reasons(account.reasons, removed)
    return f"{account.corpus.name}: {count} of {account.rows_in} rows are set aside: {told}{more}"
