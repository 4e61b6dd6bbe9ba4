"""Command line of the scripts: `--config=FILE --workdir=DIR [--config.section.field=value ...]`.

The configuration file is read first; then every leaf of it becomes one absl flag of the same name, so that `--help`
lists all of them and a misspelt one is told with its neighbours. Nothing global is touched: each call has flags of its
own.
"""

import _thread
import difflib
import errno
import io
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from absl import flags as absl_flags

from gemma_keras.config.errors import UserError, require
from gemma_keras.config.fields import STRINGS, Leaf, Names, leaves, validate
from gemma_keras.config.loading import load_config
from gemma_keras.config.stages import RENAMED, STAGES, StageConfig
from gemma_keras.config.values import kind_of, read, shown, with_home

C = TypeVar("C", bound=StageConfig)
_HINT = "run with --help for the list of all flags"

# What a disk says that is full, over its quota, or no longer writable.
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class HelpRequested(Exception):
    """`--help` was given; the message is the text to print."""


def run(main: Callable[[C, Path], Any], *, default_config: str, kind: type[C], names: Names | None = None) -> NoReturn:
    """Runs a script: parses `sys.argv` (see `parse`), calls `main(config, workdir)` and exits.

    Status 0 on success, 1 with one sentence on stderr for a user's mistake, 130 when interrupted; any other exception
    is a bug and keeps its traceback. What the terminal's encoding lacks, such as emoji in GBK, is printed as `?`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # stderr writes such characters as escapes already
    sys.unraisablehook = _interrupt_again
    try:
        status = _status(main, default_config, kind, names)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output, such as head, has left; what is unwritten goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def _interrupt_again(lost: Any) -> None:
    """Ctrl-C that arrives within a callback, such as JAX's at each garbage collection, would go no further."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        threading.Timer(0.05, _thread.interrupt_main).start()  # a moment later, when the callback has ended
    else:
        sys.__unraisablehook__(lost)


def _status(main: Callable[[C, Path], Any], default_config: str, kind: type[C], names: Names | None) -> int:
    try:
        main(*parse(sys.argv, default_config, kind, names))
    except HelpRequested as help_text:
        print(help_text)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        print(f"error: a file could not be written: {error}; mend this, and the same command goes on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from what is saved", file=sys.stderr)
        return 130
    return 0


def parse(argv: Sequence[str], default_config: str, kind: type[C], names: Names | None = None) -> tuple[C, Path]:
    """Reads the command line of a script.

    Args:
        argv: the program's name and its arguments, as `sys.argv`.
        default_config: configuration file taken when `--config` is absent.
        kind: what the stage reads.
        names: what later packages give names to, such as architectures: they are listed and checked.

    Returns:
        (config, workdir): the file's configuration with the flags' values, validated; the folder, not yet created.

    Raises:
        UserError: anything wrong with the file, a flag or a value.
        HelpRequested: `--help` was given.
    """
    for word in argv:
        # Bytes of the command line that are no UTF-8 arrive as lone surrogates, which no file takes.
        require(
            word.isascii() or word == word.encode(errors="ignore").decode(), f"{word!a} is no valid UTF-8: correct it"
        )
    first_pass = _base_flags(default_config)
    _apply(first_pass, argv, kind, known_only=True)
    config = load_config(os.path.expanduser(first_pass["config"].value), kind)

    values = _base_flags(default_config)
    for leaf in leaves(config, names):
        absl_flags.DEFINE_flag(_flag(leaf), values)
    positional = _apply(values, argv, kind)[1:]
    if values["help"].value:
        raise HelpRequested(_help(argv[0], default_config, values["config"].value, leaves(config, names)))
    for word in positional:
        raise UserError(f"{word!r} was given, but options have the form --name=value: {_HINT}")
    for leaf in leaves(config):
        leaf.value = with_home(leaf, _value(leaf, values[f"config.{leaf.path}"]))
    validate(config, names)
    return config, _workdir(values["workdir"].value)


def _base_flags(default_config: str) -> absl_flags.FlagValues:
    values = absl_flags.FlagValues()
    values.set_gnu_getopt(True)  # options may follow a stray word, which is then reported
    absl_flags.DEFINE_string("config", default_config, "configuration file", flag_values=values)
    absl_flags.DEFINE_string("workdir", "", "folder of this run", flag_values=values)
    absl_flags.DEFINE_boolean("help", False, "list all flags", short_name="h", flag_values=values)
    return values


def _apply(values: absl_flags.FlagValues, argv: Sequence[str], kind: type[C], known_only: bool = False) -> list[str]:
    """Parses `argv` into `values`; returns the program's name and what is not a flag."""
    try:
        return values(list(argv), known_only=known_only)
    except absl_flags.UnrecognizedFlagError as error:
        meant = _meant(error.flagname, list(values), kind)
        raise UserError(f"--{error.flagname} is no flag of this script or configuration: {meant}") from error
    except (absl_flags.Error, ValueError) as error:
        raise UserError(f"{str(error).removeprefix('ERROR:: ')}: {_HINT}") from error


def _meant(wrong: str, names: list[str], kind: type[C]) -> str:
    """What to give in place of a flag that there is not: its name of today, another script, or what is spelt alike."""
    field = wrong.removeprefix("config.")
    if now := RENAMED.get(kind, {}).get(field):
        return f"it is --config.{now} now"
    readers = [name for name, stage in STAGES.items() if field in {leaf.path for leaf in leaves(stage())}]
    if readers:
        return (
            f"{', '.join(f'scripts.{name}' for name in readers)} read{'s' * (len(readers) == 1)} it, this one does not"
        )
    near = _near(wrong, names)
    return f"did you mean {' or '.join(f'--{name}' for name in near)}?" if near else _HINT


def _near(wrong: str, names: list[str]) -> list[str]:
    """Flags that end in the same field name (three at most), else the one spelt most alike."""
    field = wrong.rpartition(".")[2]
    same_field = [name for name in names if name.rpartition(".")[2] == field]
    if same_field:
        return difflib.get_close_matches(wrong, same_field, n=3, cutoff=0)
    return difflib.get_close_matches(wrong, names, n=1, cutoff=0.7)


class _LeafParser(absl_flags.ArgumentParser):
    """Turns a flag's text into the leaf's type; a default of that type passes unchanged."""

    def __init__(self, leaf: Leaf) -> None:
        self.leaf = leaf

    def parse(self, argument: Any) -> Any:
        return read(self.leaf, argument) if isinstance(argument, str) else argument


def _flag(leaf: Leaf) -> absl_flags.Flag:
    name = f"config.{leaf.path}"
    if leaf.kind == STRINGS:
        return absl_flags.MultiFlag(_LeafParser(leaf), None, name, [list(leaf.value)], leaf.doc)
    return absl_flags.Flag(_LeafParser(leaf), None, name, leaf.value, leaf.doc, boolean=leaf.kind is bool)


def _value(leaf: Leaf, flag: absl_flags.Flag) -> Any:
    """What the flag, given or not, makes of its leaf; one empty text alone is an empty list, as it is of names."""
    if leaf.kind != STRINGS:
        return flag.value
    entries = tuple(entry for entries in flag.value for entry in entries)
    return () if flag.present == 1 and entries == ("",) else entries


def _workdir(text: str) -> Path:
    require(text != "", "--workdir is missing: give the folder for this run's files, such as --workdir=runs/first")
    folder = Path(os.path.expanduser(text))
    require(
        not text.startswith("~") or folder != Path(text),
        f"--workdir={text} begins with a user who is not known here: write the folder out, or ./{text} for one of that name",
    )
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    require(nearest.is_dir(), f"--workdir={text} cannot be a folder, since {nearest} is a file: give another folder")
    require(os.access(nearest, os.W_OK), f"--workdir={text} cannot be written: give a folder that you may write to")
    return folder


def _help(program: str, default_config: str, path: str, fields: Iterable[Leaf]) -> str:
    """The text of `--help`: the script's purpose, then every field with type, default and meaning."""
    purpose = (sys.modules["__main__"].__doc__ or "").strip()
    lines = [
        f"usage: python -m scripts.{Path(program).stem} --workdir=DIR [--config=FILE] [--config.FIELD=VALUE ...]",
        *(["", purpose] if purpose else []),
        "",
        "  --workdir=DIR  folder of this run: everything it writes, and what it resumes from (required)",
        f"  --config=FILE  configuration file (default: {default_config})",
        "  --help         this text",
        "",
        f"fields, with their values in {path} as a shell takes them. A list of names or paths is given as a,b or by repeating",
        "its flag, a list of texts by repeating its flag alone; an empty value empties a list, and ~ begins a path at home:",
        "",
    ]
    for leaf in fields:
        lines += [f"  --config.{leaf.path} ({kind_of(leaf)}, default: {shown(leaf)})", f"      {leaf.doc}"]
    return "\n".join(lines)
