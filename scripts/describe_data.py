"""Reads every known corpus below data.root and accounts for its rows, in WORKDIR/data.md."""

from gemma_keras.stages.running.launch import launch

if __name__ == "__main__":
    launch("describe_data", default_config="configs/describe_data.py")
