import os
import subprocess
import sys

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.text.gemma_check import EXPECTED_VARIABLE, check_gemma_ids
from gemma_keras.text.tokenizer import Tokenizer

TOKENIZER_VARIABLE = "GEMMA_KERAS_TOKENIZER"


def _expectations(folder, tokenizer, text=" a\nb 你\n  c "):
    """Files of expected ids that `tokenizer` itself fulfils."""
    ids = ", ".join(map(str, tokenizer.encode_content(text)))
    for name in ("small", "mixed"):
        escaped = text.replace("\n", "\\n").removesuffix(" ") + "\\s"
        (folder / f"{name}_input.txt").write_text(escaped, encoding="utf-8")
        (folder / f"{name}_tokens_gemma.txt").write_text(ids, encoding="utf-8")
    for name, content in (("input", text), ("tokens_gemma", ids), ("output_gemma", text)):
        (folder / f"utf8_{name}.txt").write_text(content, encoding="utf-8")


def test_only_the_vocabulary_differs_where_the_ids_agree(tmp_path, tokenizer):
    _expectations(tmp_path, tokenizer)
    assert check_gemma_ids(tokenizer, tmp_path) == ["vocabulary size: 2560, expected 256000"]


def test_a_wrong_id_is_found(tmp_path, tokenizer):
    _expectations(tmp_path, tokenizer)
    path = tmp_path / "mixed_tokens_gemma.txt"
    path.write_text(path.read_text() + ", 5", encoding="utf-8")
    (tmp_path / "utf8_output_gemma.txt").write_text("something else", encoding="utf-8")
    found = check_gemma_ids(tokenizer, tmp_path)
    assert [line.split(":")[0] for line in found] == ["vocabulary size", "mixed line 1", "utf8 decoding"]


def test_files_that_do_not_fit_are_told(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"small_input\.txt"):
        check_gemma_ids(tokenizer, tmp_path)
    _expectations(tmp_path, tokenizer)
    (tmp_path / "small_input.txt").write_text("a\nb\nc", encoding="utf-8")
    with pytest.raises(UserError, match="3 texts but 1 lines"):
        check_gemma_ids(tokenizer, tmp_path)


def test_the_builtin_tokenizer_is_not_gemmas(real_data, tokenizer):
    found = check_gemma_ids(tokenizer, real_data / "tokenizer" / "gemma_expected_ids")
    assert any(line.startswith("mixed line") for line in found) and any(line.startswith("utf8") for line in found)


@pytest.mark.skipif(
    TOKENIZER_VARIABLE not in os.environ, reason=f"{TOKENIZER_VARIABLE} does not point at Gemma's tokenizer"
)
def test_the_real_tokenizer_gives_gemmas_ids(request):
    folder = (
        os.environ.get(EXPECTED_VARIABLE) or request.getfixturevalue("real_data") / "tokenizer" / "gemma_expected_ids"
    )
    assert check_gemma_ids(Tokenizer(os.environ[TOKENIZER_VARIABLE]), folder) == []


def test_command_line(tmp_path, tokenizer):
    command = [sys.executable, "-m", "gemma_keras.text.gemma_check", f"--tokenizer={tokenizer.path}"]
    environment = {k: v for k, v in os.environ.items() if k != EXPECTED_VARIABLE}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1 and EXPECTED_VARIABLE in done.stderr and "Traceback" not in done.stderr
    _expectations(tmp_path, tokenizer)
    done = subprocess.run(
        [*command, f"--expected={tmp_path}"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 1 and "1 differences" in done.stdout
