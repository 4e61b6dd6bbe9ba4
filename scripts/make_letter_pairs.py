"""Builds preference pairs from a model's own answers to multiple-choice questions, in WORKDIR."""

from gemma_keras.stages.running.launch import launch

if __name__ == "__main__":
    launch("make_letter_pairs", "letter_pairs", default_config="configs/letter_pairs.py")
