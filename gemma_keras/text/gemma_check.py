"""Does a tokenizer give the ids that the one of Gemma 1 and 2 gives (Gemma 3 has another)? Run it with a real one:

    python -m gemma_keras.text.gemma_check --tokenizer=tokenizer.model --expected=tokenizer/gemma_expected_ids

The folder of expectations holds `NAME_input.txt` and `NAME_tokens_gemma.txt`. Of `small` and `mixed`, each line is a text,
with backslash-n for a newline and backslash-s for a blank (which many editors cut from the end of a line), and its ids
separated by commas; of `utf8` the whole file is one text, and `utf8_output_gemma.txt` its decoding.
"""

import argparse
import os
import sys
from pathlib import Path

from gemma_keras.config.errors import UserError
from gemma_keras.text.tokenizer import Tokenizer

GEMMA_PIECES = 256_000
GEMMA_IDS = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4, "<start_of_turn>": 106, "<end_of_turn>": 107}
EXPECTED_VARIABLE = "GEMMA_KERAS_EXPECTED_IDS"


def check_gemma_ids(tokenizer: Tokenizer, folder: str | Path) -> list[str]:
    """Differences between `tokenizer` and Gemma's, one sentence each; empty if there are none.

    Raises:
        UserError: the folder lacks an expected file.
    """
    folder = Path(folder)
    mismatches = _compare("vocabulary size", tokenizer.vocabulary_size, GEMMA_PIECES)
    for piece, token in GEMMA_IDS.items():
        mismatches += _compare(f"id of {piece}", tokenizer.control_pieces.get(piece), token)
    for name in ("small", "mixed"):
        texts = _text(folder / f"{name}_input.txt").split("\n")
        expected = _text(folder / f"{name}_tokens_gemma.txt").split("\n")
        if len(texts) != len(expected):
            raise UserError(
                f"{folder}: {name} has {len(texts)} texts but {len(expected)} lines of ids; copy both again"
            )
        for number, (text, ids) in enumerate(zip(texts, expected, strict=True), start=1):
            got = tokenizer.encode_content(text.replace("\\n", "\n").replace("\\s", " "))
            mismatches += _compare(f"{name} line {number}", got, _ids(ids))
    whole = _ids(_text(folder / "utf8_tokens_gemma.txt"))
    mismatches += _compare("utf8 text", tokenizer.encode_content(_text(folder / "utf8_input.txt")), whole)
    if max(whole) < tokenizer.vocabulary_size:
        mismatches += _compare("utf8 decoding", tokenizer.decode(whole), _text(folder / "utf8_output_gemma.txt"))
    return mismatches


def main() -> int:
    """Prints the differences; exit status 0 if there are none, else 1."""
    parser = argparse.ArgumentParser(description="compare a tokenizer with the ids that Gemma's gives")
    parser.add_argument("--tokenizer", required=True, help="SentencePiece model file")
    parser.add_argument("--expected", default=os.environ.get(EXPECTED_VARIABLE, ""), help="folder of expected ids")
    arguments = parser.parse_args()
    try:
        if not arguments.expected:
            raise UserError(f"no expected ids are given; set --expected or {EXPECTED_VARIABLE} to their folder")
        mismatches = check_gemma_ids(Tokenizer(arguments.tokenizer), arguments.expected)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    for line in mismatches:
        print(line)
    print(f"{len(mismatches)} differences from Gemma's tokenizer")
    return 1 if mismatches else 0


def _text(path: Path) -> str:
    try:
        # bytes, since reading as text would turn carriage returns into newlines
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the expected ids in {path}; give the folder that holds them") from error


def _ids(line: str) -> list[int]:
    return [int(token) for token in line.split(",") if token.strip()]


def _compare(what: str, got: object, expected: object) -> list[str]:
    if got == expected:
        return []
    if isinstance(got, list | str) and isinstance(expected, list | str):
        place = next(
            (i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), min(len(got), len(expected))
        )
        return [f"{what}: differs from place {place} on ({len(got)} against {len(expected)} expected)"]
    return [f"{what}: {got}, expected {expected}"]


if __name__ == "__main__":
    sys.exit(main())
