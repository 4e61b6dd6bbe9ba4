"""Runs the whole flow: data, pretraining, fine-tuning, evaluation, samples, export, verification."""

from gemma_keras.stages.running.launch import launch

if __name__ == "__main__":
    launch("pipeline", default_config="configs/quickstart.py")
