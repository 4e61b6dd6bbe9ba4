"""Prepares data: corpora -> checked, tokenised, packed rows with a report, in WORKDIR/data."""

from gemma_keras.config.stages import PrepareConfig
from gemma_keras.stages.running.launch import launch

if __name__ == "__main__":
    launch("prepare", PrepareConfig, default_config="configs/tiny.py")
