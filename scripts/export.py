"""Exports a model as a Hugging Face folder, adapters merged."""

from gemma_keras.stages.running.launch import launch

if __name__ == "__main__":
    launch("export", default_config="configs/export.py")
