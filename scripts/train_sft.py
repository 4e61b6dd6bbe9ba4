"""Fine-tunes a base model on conversations with an adapter (AdaLoRA by default)."""

from gemma_keras.config.stages import SftConfig
from gemma_keras.stages.running.launch import launch

if __name__ == "__main__":
    launch("sft", SftConfig, default_config="configs/tiny.py")
