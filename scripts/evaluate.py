"""Evaluates a model: perplexity and token accuracy on held-out rows."""

from gemma_keras.stages.running.launch import launch

if __name__ == "__main__":
    launch("evaluate", default_config="configs/evaluate.py")
