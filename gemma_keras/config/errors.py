"""The one exception for mistakes that a user can mend."""


class UserError(ValueError):
    """A user's mistake, told in one sentence: what was given, what was expected, what to do.

    Scripts print the message alone and exit with status 1; every other exception is a bug and keeps its traceback.
    """


def require(condition: bool, message: str) -> None:
    """Raises `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)
