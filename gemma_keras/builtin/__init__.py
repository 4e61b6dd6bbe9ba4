"""The embedded default: a small Chinese corpus and a tiny tokenizer, so that everything runs with no data at hand."""

from pathlib import Path

TOKENIZER = Path(__file__).parent / "tokenizer.model"
