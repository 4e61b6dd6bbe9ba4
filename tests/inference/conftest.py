"""Settings of the comparisons with transformers."""

import torch

# Small matrices gain nothing from threads, which slow each other down by 20 times when other tests run beside them.
torch.set_num_threads(1)
