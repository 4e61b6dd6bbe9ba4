"""Rows that no corpus has, for every function that reads rows."""

import copy
import functools

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemma_keras.data.records import (
    BadRow,
    ChatRecord,
    ChoiceRecord,
    PreferenceRecord,
    SkippedRow,
    TextRecord,
    validate,
)

RECORDS = (ChatRecord, ChoiceRecord, PreferenceRecord, TextRecord)

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(("User:", "<s>", "Human: 问\nAssistant: 答", "=", "{}", "<user>", "<start_of_turn>model\n", "\ud800")),
)  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def _places(value, path=()):
    """The path of every value inside."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from _places(item, (*path, key))


@st.composite
def damaged(draw, rows):
    """One of `rows` with one to three of its values, at any depth, replaced by any JSON or left out."""
    row = copy.deepcopy(draw(st.sampled_from(rows)))
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from([place for place in _places(row) if place] or [("x",)]))
        holder = functools.reduce(lambda value, key: value[key], path, row)
        if draw(st.booleans()) and isinstance(holder, dict):
            holder.pop(last, None)
        else:
            holder[last] = draw(JSON)
    return row


def _allowed(read, *arguments):
    try:
        return read(*arguments)
    except (BadRow, SkippedRow) as error:
        assert str(error)
        return None


def reads_anything(source, rows):
    """Checks that the functions of an entry give records, or say by BadRow or SkippedRow why not, whatever they get."""
    anything = damaged(rows) | st.fixed_dictionaries({key: JSON for row in rows for key in row})

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(anything, min_size=1, max_size=3))
    def check(given_rows):
        together = [given_rows, *([row] for row in given_rows)]
        results = [_allowed(source.read, rows) for rows in (given_rows if source.group is None else together)]
        for records in results:
            assert records is None or (isinstance(records, list) and all(isinstance(r, RECORDS) for r in records))
            for record in records or ():
                _allowed(validate, record)
        for name in (source.kind, source.group):
            found = _allowed(name, given_rows[0]) if name is not None else None
            assert found is None or isinstance(found, str)

    check()
