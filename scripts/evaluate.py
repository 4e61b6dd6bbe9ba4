"""Evaluates a model: perplexity and token accuracy on held-out rows."""

from gemma_keras.config.stages import EvaluateConfig
from gemma_keras.stages.running.launch import launch

if __name__ == "__main__":
    launch("evaluate", EvaluateConfig, default_config="configs/evaluate.py")
