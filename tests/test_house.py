"""The order of packages, the limits on single modules, and what is not imported or written anywhere."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A package imports packages to its left only; the modules `runtime` and `batch_arrays` stand beside config, the package's
# root behind them.
ORDER = (
    "config builtin text data models adapters training checkpoints export inference solvers evaluation stages "
    "preflight serving scripts"
).split()
RANK = {name: rank for rank, name in enumerate(ORDER)} | {"runtime": 0.3, "batch_arrays": 0.3, "": 0.6}
FORBIDDEN = {"data": {"jax", "keras", "keras_hub"}, "training": {"gemma_keras.data", "gemma_keras.checkpoints"}}
TENSORFLOW_MODULES = {"gemma_keras/data/pipeline.py", "gemma_keras/runtime.py"}
LONGEST_MODULE = 420

MODULES = [
    path.relative_to(ROOT).as_posix()
    for folder in ("gemma_keras", "scripts", "configs")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def package_of(module: str) -> str:
    """`gemma_keras/data/mixing.py` -> "data", `gemma_keras/runtime.py` -> "runtime", `scripts/chat.py` -> "scripts"."""
    parts = module.removesuffix(".py").removesuffix("/__init__").split("/")
    return parts[0] if parts[0] != "gemma_keras" else "".join(parts[1:2])


def imports(node: ast.AST, inside_function: bool = False) -> Iterator[tuple[str, bool]]:
    """Yields (dotted name, whether inside a function) for all imports; `from a import b` gives `a.b`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, inside_function) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from ((f"{child.module}.{alias.name}", inside_function) for alias in child.names)
        else:
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports(child, inside_function or is_function)


def imports_of(module: str) -> list[tuple[str, bool]]:
    return list(imports(ast.parse((ROOT / module).read_text(encoding="utf-8"))))


@pytest.mark.parametrize("module", MODULES)
def test_packages_import_leftwards(module):
    package = package_of(module)
    if package == "configs":
        allowed = {"config"}
    else:
        assert package in RANK, f"{package} has no place in the order of packages"
        allowed = {name for name in RANK if RANK[name] < RANK[package]} | {package}
    for name, _ in imports_of(module):
        parts = name.split(".")
        if parts[0] == "gemma_keras":
            imported = parts[1] if parts[1] in RANK else ""
            assert imported in allowed | {""}, f"{module} imports {name}"
        assert parts[0] != "tests", f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_forbidden_imports(module):
    for name, _ in imports_of(module):
        for forbidden in FORBIDDEN.get(package_of(module), ()):
            assert not f"{name}.".startswith(f"{forbidden}."), f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_tensorflow_is_imported_in_functions_of_two_modules(module):
    for name, inside_function in imports_of(module):
        if name.split(".")[0] in ("tensorflow", "tensorflow_text"):
            assert module in TENSORFLOW_MODULES, f"{module} imports {name}"
            assert inside_function, f"{module} imports {name} outside a function"


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_short(module):
    assert Path(module).name != "utils.py"
    lines = len((ROOT / module).read_text(encoding="utf-8").splitlines())
    assert lines <= (60 if package_of(module) == "scripts" else LONGEST_MODULE)


def test_no_path_of_one_machine_is_written_anywhere():
    pattern = re.compile(rb"(?<![\w.:~-])/(?:home|root|work|Users|mnt)/\w")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    names = [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    assert names
    found = [name for name in names if pattern.search((ROOT / name).read_bytes())]
    assert not found


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def blocked(*names: str) -> str:
    return "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in names)


def test_inference_evaluation_export_and_stages_import_without_tensorflow():
    modules = [m for m in MODULES if package_of(m) in ("inference", "evaluation", "export", "stages")]
    names = [m.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for m in modules]
    code = blocked("tensorflow", "tensorflow_text") + "from gemma_keras import runtime\nruntime.select_backend()\n"
    result = run_python(code + f"import {', '.join(names)}")
    assert result.returncode == 0, result.stderr


def test_config_text_and_data_import_without_jax_and_keras():
    modules = [m for m in MODULES if package_of(m) in ("config", "builtin", "text", "data", "runtime")]
    names = [m.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for m in modules]
    result = run_python(blocked("jax", "keras", "keras_hub", "tensorflow") + f"import {', '.join(names)}")
    assert result.returncode == 0, result.stderr
