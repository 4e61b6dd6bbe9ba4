"""Values of leaves as texts: how a flag is read, and how `--help` shows a value so that a shell gives it again."""

import csv
import io
import os
import re
import shlex
from typing import Any

from gemma_keras.config.fields import ESCAPED_TEXTS, NAMES, PATHS, STRINGS, TEXTS, Leaf

_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}
_EXPECTED = {bool: "true or false", int: "a whole number such as 100", float: "a number such as 0.5 or 3e-5"}
_LISTS = {
    NAMES: "list of names a,b",
    PATHS: "list of paths a,b",
    TEXTS: "list of texts, the flag repeated",
    ESCAPED_TEXTS: "list of texts with escapes, the flag repeated",
}
# Few, so that a backslash before any other letter is one.
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\r": "\r", r"\\": "\\"}
_SPELT = str.maketrans({meant: escape for escape, meant in _ESCAPES.items()})


def kind_of(leaf: Leaf) -> str:
    """What a leaf takes, as `--help` says it."""
    if leaf.kind == STRINGS:
        return _LISTS[leaf.holds]
    return "path" if leaf.holds == PATHS else leaf.kind.__name__


def read(leaf: Leaf, text: str) -> Any:
    """The value that a flag's text gives to a leaf; of a list, the entries that this flag adds.

    Raises:
        ValueError: it gives none; the message says what is expected.
    """
    if leaf.kind == STRINGS:
        if leaf.holds in (NAMES, PATHS):
            return _separated(text)
        return [re.sub(r"\\[ntr\\]", lambda escape: _ESCAPES[escape[0]], text) if leaf.holds == ESCAPED_TEXTS else text]
    if leaf.kind is str:
        return text
    try:
        return _BOOLEANS[text.lower()] if leaf.kind is bool else leaf.kind(text)
    except (ValueError, KeyError):
        raise ValueError(f"{_EXPECTED[leaf.kind]} is expected") from None


def shown(leaf: Leaf) -> str:
    """The value of a leaf as a shell's word that its flag takes; of several texts, the flags."""
    if leaf.kind == STRINGS and leaf.holds in (TEXTS, ESCAPED_TEXTS):
        texts = (text.translate(_SPELT) if leaf.holds == ESCAPED_TEXTS else text for text in leaf.value)
        return " ".join(f"--config.{leaf.path}={shlex.quote(text)}" for text in texts) or "''"
    if leaf.kind == STRINGS:
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(leaf.value)
        return shlex.quote(line.getvalue())
    return str(leaf.value).lower() if leaf.kind is bool else shlex.quote(str(leaf.value))


def with_home(leaf: Leaf, value: Any) -> Any:
    """The value with the home folder in place of a leading `~`, where it names files or folders."""
    if leaf.holds != PATHS:
        return value
    return os.path.expanduser(value) if leaf.kind is str else tuple(map(os.path.expanduser, value))


def _separated(text: str) -> list[str]:
    """Entries between commas, without blanks around them; one in double quotes may have commas itself."""
    if not text.strip():
        return []
    try:
        (row,) = csv.reader([text], strict=True, skipinitialspace=True)
    except csv.Error as error:
        raise ValueError(f"names with commas between them are expected, such as a,b ({error})") from None
    entries = [entry.strip() for entry in row]
    if not all(entries):
        raise ValueError("names with commas between them are expected, such as a,b, and one of these is empty")
    return entries
