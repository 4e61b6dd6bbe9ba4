"""Builds preference pairs from a model's own answers to multiple-choice questions, in WORKDIR."""

from gemma_keras.config.stages import LetterPairsConfig
from gemma_keras.stages.running.launch import launch

if __name__ == "__main__":
    launch("letter_pairs", LetterPairsConfig, default_config="configs/letter_pairs.py")
