"""Which files a corpus has: a file, all below a folder, or what matches a glob; and what of that is not read, and why."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from gemma_keras.config.errors import UserError

HIDDEN = "hidden"
UNREAD_FORMAT = "of a format that is not read"
BROKEN = "a broken link"
CYCLE = "a link to a folder around it"
AGAIN = "another link to a file that is read"
CLOSED = "cannot be opened"
SPECIAL = "no regular file"

SHOWN = 3

_ARCHIVES = {".zip", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".rar"}

_Parts = tuple[str, ...]

_EVERYTHING: _Parts = ("**",)


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """`files` in the order of their paths; `not_read` are paths with the reason, in the same order."""

    files: tuple[Path, ...] = ()
    not_read: tuple[tuple[Path, str], ...] = ()


def find(place: str, root: Path, readable: Callable[[Path], bool]) -> FoundFiles:
    """The files of `place`, which is a file, a folder or a glob, relative to `root`.

    Links to folders are followed, but for those to a folder around them; a file that several paths lead to is read once. What
    is hidden (its name starts with a full stop) is not read, unless `place` names it.

    Args:
        readable: whether a file found in a folder or by a glob has a format that is read.

    Raises:
        UserError: `place` cannot be a path or a glob.
    """
    base = root / place
    if os.path.isfile(base):
        # Whatever else a file is called, its content tells; but the lines of an archive are no rows.
        return FoundFiles((), ((base, UNREAD_FORMAT),)) if base.suffix.lower() in _ARCHIVES else FoundFiles((base,))
    if os.path.isdir(base):
        return below(base, readable)
    if os.path.islink(base):
        return FoundFiles((), ((base, BROKEN),))
    # The root itself may hold characters that a pattern would give a meaning.
    parts = Path(place).parts
    fixed = next((number for number, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
    if "\0" in place or any("**" in part and part != "**" for part in parts):
        raise UserError(f"{place!r} cannot be looked through (** has to stand alone); give a file, a folder or a glob")
    return below(root.joinpath(*parts[:fixed]), readable, parts[fixed:])


def below(folder: Path, readable: Callable[[Path], bool], pattern: _Parts = _EVERYTHING) -> FoundFiles:
    """The files below a folder whose path within it matches the parts of a glob; as `find` otherwise."""
    hidden_too = any(part.startswith(".") for part in pattern)
    files: list[tuple[bool, Path]] = []
    not_read: list[tuple[Path, str]] = []
    # Of each folder its path within the first, whether a link leads to it, and the real paths of those around it and its own.
    pending: list[tuple[_Parts, bool, _Parts]] = [((), False, (os.path.realpath(folder),))]
    while pending and pattern:
        parts, linked, around = pending.pop()
        for name in _names(folder.joinpath(*parts), not_read):
            path, within = folder.joinpath(*parts, name), (*parts, name)
            is_folder, is_link = os.path.isdir(path), os.path.islink(path)
            if not (_leads_to(within, pattern) if is_folder else _matches(within, pattern)):
                continue
            if name.startswith(".") and not hidden_too:
                not_read.append((path, HIDDEN))
            elif is_folder:
                real = os.path.realpath(path) if is_link else os.path.join(around[-1], name)
                if is_link and any(Path(other).is_relative_to(real) for other in around):
                    not_read.append((path, CYCLE))
                else:
                    pending.append((within, linked or is_link, (*around, real)))
            elif reason := _unfit(path, readable):
                not_read.append((path, reason))
            else:
                files.append((linked or is_link, path))
    if any(linked for linked, _ in files):
        files = _once(files, not_read)
    return FoundFiles(tuple(sorted(path for _, path in files)), tuple(sorted(not_read)))


def _names(folder: Path, not_read: list[tuple[Path, str]]) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        not_read.append((folder, CLOSED))
        return []


def _unfit(path: Path, readable: Callable[[Path], bool]) -> str:
    if not os.path.exists(path):
        return BROKEN
    if not os.path.isfile(path):
        return SPECIAL
    return "" if readable(path) else UNREAD_FORMAT


def _once(files: list[tuple[bool, Path]], not_read: list[tuple[Path, str]]) -> list[tuple[bool, Path]]:
    """The files without those that another path leads to, which is one without links where there is such a path."""
    kept: dict[str, tuple[bool, Path]] = {}
    for file in sorted(files):
        if kept.setdefault(os.path.realpath(file[1]), file) is not file:
            not_read.append((file[1], AGAIN))
    return list(kept.values())


def _matches(parts: _Parts, pattern: _Parts) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return pattern[1:] == () or any(_matches(parts[start:], pattern[1:]) for start in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _leads_to(parts: _Parts, pattern: _Parts) -> bool:
    """Whether something within the folder at `parts` may match."""
    for part, wanted in zip(parts, pattern):
        if wanted == "**":
            return True
        if not fnmatchcase(part, wanted):
            return False
    return len(parts) < len(pattern) or pattern[-1] == "**"


def describe(not_read: list[tuple[str, str]]) -> str:
    """One line about paths that are not read, by reason, with some of the names of each.

    >>> describe([("a/.git", "hidden"), ("a/b.zip", "of a format that is not read")])
    'a/.git (hidden), a/b.zip (of a format that is not read)'
    """
    told = []
    for reason in dict.fromkeys(reason for _, reason in not_read):
        names = [name for name, why in not_read if why == reason]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        told.append(f"{', '.join(names[:SHOWN])}{more} ({reason})")
    return ", ".join(told)
