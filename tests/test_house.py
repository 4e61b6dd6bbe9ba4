"""The order of packages, the limits on modules and functions, and what is not imported or written anywhere."""

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import house
from tests.house import MODULES, ROOT, package_of


@pytest.mark.parametrize("check", [house.wrong_imports, house.too_long, house.repeated_class_names])
def test_the_house_is_in_order(check):
    assert check() == []


def test_no_module_is_called_utils():
    assert not [module for module in MODULES if Path(module).name == "utils.py"]


def test_what_is_out_of_order_is_found(monkeypatch):
    monkeypatch.setattr(house, "RANK", house.RANK | {"config": 99})
    assert any(line.startswith("gemma_keras/models/") for line in house.wrong_imports())
    monkeypatch.setattr(house, "LONGEST", {"module": 340, "script": 60, "function": 50})
    assert {line.split()[-1] for line in house.too_long()} == {"lines"}


def test_lines_of_code_leave_out_blanks_and_comments():
    assert house.code_lines('"""One.\n\nTwo."""\n\n# three\nfour = """\nfive"""  # six\n') == 4


def test_walks_of_the_design_take_steps_that_there_are():
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    section = text.split("## Three walks through the house\n")[1].split("\n## ")[0]
    walks = [
        re.findall(r"^\d+\. `(\S+)` `(\S+)`: \S", part, re.M)
        for part in re.split(r"^An? .*:$", section, flags=re.M)[1:]
    ]
    assert len(walks) == 3 and all(6 <= len(walk) <= 12 for walk in walks)
    assert sum(map(len, walks)) == len(re.findall(r"^\d+\. ", section, re.M))
    for module, name in itertools.chain(*walks):
        tree: Any = ast.parse(house.source(f"gemma_keras/{module}"))
        for part in name.split("."):
            tree = next((node for node in tree.body if getattr(node, "name", "") == part), None)
            assert tree, f"{module} has no {name}"


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
