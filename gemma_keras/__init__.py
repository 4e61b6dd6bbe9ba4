"""gemma_keras: tailor Google's Gemma 2 models to Chinese on Kaggle TPU VMs."""

__version__ = "0.1.0"
