import os
import subprocess
import sys

import pytest

from gemma_keras.config.errors import UserError
from gemma_keras.text.endpoint_client.answer_cache import GROUP, AnswerCache, CachedAnswer
from tests.conftest import REPOSITORY


def test_answers_stay(tmp_path):
    path = tmp_path / "new" / "answers.sqlite"
    cache = AnswerCache(path)
    assert cache.get("a") is None and not path.exists()
    cache.put("a", CachedAnswer("你好\0\n😀", 3, 4))
    cache.put("b", CachedAnswer("b"))
    cache.put("b", CachedAnswer("c"))
    assert cache.get("a") == CachedAnswer("你好\0\n😀", 3, 4)
    cache.close()
    again = AnswerCache(path)
    assert [again.get(key) for key in "abc"] == [CachedAnswer("你好\0\n😀", 3, 4), CachedAnswer("c"), None]
    again.close()


def test_a_full_group_is_written_at_once(tmp_path):
    cache, other = AnswerCache(tmp_path / "a"), None
    for number in range(GROUP + 1):
        cache.put(str(number), CachedAnswer("x"))
    other = AnswerCache(tmp_path / "a")
    assert other.get(str(GROUP - 1)) and not other.get(str(GROUP))


def test_processes_share_a_file(tmp_path):
    script = (
        "import sys; from pathlib import Path; from gemma_keras.text.endpoint_client.answer_cache import *\n"
        "cache = AnswerCache(Path(sys.argv[1]))\n"
        "for i in range(200): cache.put(f'{sys.argv[2]} {i}', CachedAnswer('x' * 500)); i % 3 or cache.commit()\n"
        "cache.close()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a")]
    running = [subprocess.Popen([*command, name], cwd=REPOSITORY) for name in "abc"]
    assert [process.wait() for process in running] == [0, 0, 0]
    cache = AnswerCache(tmp_path / "a")
    assert all(cache.get(f"{name} {i}") for name in "abc" for i in range(200))


@pytest.mark.parametrize("damage", ["garbage", "header", "middle", "truncated", "folder", "other"])
def test_a_damaged_file_is_told_and_kept(tmp_path, damage):
    path = tmp_path / "a"
    cache = AnswerCache(path)
    for number in range(2000):
        cache.put(str(number), CachedAnswer("x" * 100))
    cache.close()
    data = path.read_bytes()
    half = len(data) // 2
    if damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "other":
        path.unlink()
        cache = AnswerCache(path)
        cache.put("a", CachedAnswer("x"))
        cache.commit()
        cache._file.execute("ALTER TABLE answers RENAME text TO words")
        cache.close()
    else:
        path.write_bytes(
            {
                "garbage": os.urandom(9000),
                "header": b"\0" * 100 + data[100:],
                "middle": data[:half] + os.urandom(8192) + data[half + 8192 :],
                "truncated": data[:half],
            }[damage]
        )
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(UserError, match="the file of answers .*a cannot be used"):
        AnswerCache(path).get("a")
    assert path.exists() and (path.is_dir() or path.read_bytes() == before)
