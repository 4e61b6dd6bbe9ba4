"""Fine-tunes a base model on conversations with an adapter (AdaLoRA by default)."""

from gemma_keras.stages.running.launch import launch

if __name__ == "__main__":
    launch("train_sft", "training", default_config="configs/tiny.py")
