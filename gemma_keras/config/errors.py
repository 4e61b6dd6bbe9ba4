"""The one exception for mistakes that a user can mend."""

import contextlib
from collections.abc import Iterator

import pydantic


class UserError(ValueError):
    """A user's mistake, told in one sentence: what was given, what was expected, what to do.

    Scripts print the message alone and exit with status 1; every other exception is a bug and keeps its traceback.
    """


def require(condition: bool, message: str) -> None:
    """Raises `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)


@contextlib.contextmanager
def telling_of(path: str) -> Iterator[None]:
    """Raises a `UserError` for the first thing that pydantic finds wrong with the value called `path`, or below it."""
    try:
        yield
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, (path, *first["loc"])))
        raise UserError(f"{place} is {first['input']!r:.80}: {first['msg']}") from None
