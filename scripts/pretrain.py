"""Pretrains a base model: all weights are trained on plain text and some dialogues."""

from gemma_keras.stages.running.launch import launch

if __name__ == "__main__":
    launch("pretrain", "training", default_config="configs/pretrain.py")
