"""How the house is built, printed and checked: `python -m tests.house [COMMIT]`.

The order of packages, the lengths of modules and functions, names of classes, and lines of code by package; those of a commit
beside them where one is given. The exit status is 1 if anything is out of order.
"""

import ast
import collections
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("gemma_keras", "scripts", "configs")
# A package imports packages to its left only; the modules `runtime` and `batch_arrays` stand beside config, the package's
# root behind them.
ORDER = (
    "config builtin text data parallel models adapters training checkpoints export inference planning solvers evaluation "
    "stages preflight serving scripts"
).split()
RANK = {name: rank for rank, name in enumerate(ORDER)} | {"runtime": 0.3, "batch_arrays": 0.3, "": 0.6}
FORBIDDEN = {"data": {"jax", "keras", "keras_hub"}, "training": {"gemma_keras.data", "gemma_keras.checkpoints"}}
TENSORFLOW_MODULES = {"gemma_keras/data/pipeline.py", "gemma_keras/runtime.py"}
LONGEST = {"module": 350, "script": 60, "function": 60}
_NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip

MODULES = [path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def package_of(module: str) -> str:
    """The package that a module's place in the order is that of.

    >>> package_of("gemma_keras/data/prepare.py"), package_of("gemma_keras/runtime.py"), package_of("scripts/chat.py")
    ('data', 'runtime', 'scripts')
    """
    parts = module.removesuffix(".py").removesuffix("/__init__").split("/")
    return parts[0] if parts[0] != "gemma_keras" else "".join(parts[1:2])


def source(module: str) -> str:
    """The text of a module."""
    return (ROOT / module).read_text(encoding="utf-8")


def imports_of(module: str) -> list[tuple[str, bool]]:
    """(dotted name, whether inside a function) of all imports; `from a import b` gives `a.b`."""
    return list(_imports(ast.parse(source(module))))


def _imports(node: ast.AST, inside_function: bool = False) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, inside_function) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from ((f"{child.module}.{alias.name}", inside_function) for alias in child.names)
        else:
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports(child, inside_function or is_function)


def wrong_imports() -> list[str]:
    """Imports against the order, of what a package must not know, and of tensorflow outside of its two modules' functions."""
    found = []
    for module in MODULES:
        package = package_of(module)
        allowed = {"config", ""} if package == "configs" else {name for name in RANK if RANK[name] < RANK[package]}
        for name, inside_function in imports_of(module):
            top, second = [*name.split("."), ""][:2]
            imported = second if second in RANK else ""
            if top == "tests" or (top == "gemma_keras" and imported not in allowed | {package, ""}):
                found.append(f"{module} imports {name}, which is not to the left of it")
            if any(f"{name}.".startswith(f"{other}.") for other in FORBIDDEN.get(package, ())):
                found.append(f"{module} imports {name}, of which {package} knows nothing")
            if top in ("tensorflow", "tensorflow_text") and not (inside_function and module in TENSORFLOW_MODULES):
                found.append(f"{module} imports {name} outside of a function of {' or '.join(TENSORFLOW_MODULES)}")
    return found


def too_long() -> list[str]:
    """Modules and functions that are longer than `LONGEST`."""
    found = []
    for module in MODULES:
        text = source(module)
        kind = "script" if package_of(module) == "scripts" else "module"
        if (lines := len(text.splitlines())) > LONGEST[kind]:
            found.append(f"{module} has {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONGEST["function"]:
                    found.append(f"{node.name} of {module} has {lines} lines")
    return found


def repeated_class_names() -> list[str]:
    """Classes that have the name of another one."""
    modules = collections.defaultdict(list)
    for module in MODULES:
        for node in ast.walk(ast.parse(source(module))):
            if isinstance(node, ast.ClassDef):
                modules[node.name].append(module)
    return [f"{name} is a class of {' and of '.join(where)}" for name, where in modules.items() if len(where) > 1]


def code_lines(text: str) -> int:
    """Lines of a module without blank ones and comments."""
    numbers: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            numbers.update(range(token.start[0], token.end[0] + 1))
    lines = text.splitlines()
    return sum(1 for number in numbers if lines[number - 1].strip())


def lines_by_package(commit: str = "") -> dict[str, tuple[int, int]]:
    """(lines, those without blanks and comments) of each package, of a commit or as it is."""
    sums: dict[str, tuple[int, int]] = collections.defaultdict(lambda: (0, 0))
    modules = _git("ls-tree", "-r", "--name-only", commit, *FOLDERS).splitlines() if commit else MODULES
    for module in modules:
        if module.endswith(".py"):
            text = _git("show", f"{commit}:{module}") if commit else source(module)
            lines, code = sums[package_of(module)]
            sums[package_of(module)] = lines + len(text.splitlines()), code + code_lines(text)
    return sums


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True, encoding="utf-8").stdout


def main(commit: str = "") -> int:
    """Prints the house; returns the exit status."""
    tables = {commit: lines_by_package(commit)} if commit else {}
    tables["now"] = lines_by_package()
    print(f"{'lines, without blanks and comments':36}" + "".join(f"{name[:9]:>9}{'':8}" for name in tables))
    packages = sorted(
        {name for table in tables.values() for name in table}, key=lambda name: (RANK.get(name, 99), name)
    )
    for package in [*packages, "all"]:
        row = [
            table[package] if package != "all" else tuple(map(sum, zip(*table.values(), strict=True)))
            for table in tables.values()
        ]
        print(f"  {package or 'gemma_keras':34}" + "".join(f"{lines:9,}{code:8,}" for lines, code in row))
    checks = {
        "order of packages: " + " < ".join(ORDER): wrong_imports(),
        "lengths, at most " + ", ".join(f"{most} a {kind}" for kind, most in LONGEST.items()): too_long(),
        "one class a name": repeated_class_names(),
    }
    for name, found in checks.items():
        print(f"{name}: {'yes' if not found else 'NO'}", *found, sep="\n  ")
    return int(any(checks.values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
