"""What comes with the package for when no data is at hand: a Chinese corpus of our own and a tiny tokenizer."""

from pathlib import Path

# Laid out like a user's folder of corpora, in the raw schemas of the real ones; README.md says what lies in it.
CORPUS = Path(__file__).parent / "corpus"
TOKENIZER = Path(__file__).parent / "tokenizer.model"
