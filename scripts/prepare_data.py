"""Prepares data: corpora -> checked, tokenised, packed rows with a report, in WORKDIR/data."""

from gemma_keras.stages.running.launch import launch

if __name__ == "__main__":
    launch("prepare_data", "prepare", default_config="configs/tiny.py")
