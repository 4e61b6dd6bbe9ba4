"""Runs the whole flow: data, pretraining, fine-tuning, evaluation, samples, export, verification."""

from gemma_keras.config.stages import PipelineConfig
from gemma_keras.stages.running.launch import launch

if __name__ == "__main__":
    launch("pipeline", PipelineConfig, default_config="configs/quickstart.py")
