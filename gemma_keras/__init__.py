"""gemma_keras: tailor Google's Gemma models to Chinese on Kaggle TPU VMs."""

from gemma_keras.runtime import select_backend

select_backend()  # before anything imports keras, which reads its backend once
