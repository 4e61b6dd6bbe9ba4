"""What others offer for the same step: transformers with PEFT's AdaLoRA, and keras-hub's `enable_lora` with `fit`.

Both are used as their own documentation shows, at their fastest correct setting.

Axes: R rows of a step, T tokens.
"""

import math
import os
import time
from pathlib import Path

import numpy as np

from benchmarks import workload
from benchmarks.workload import Row, Workload, padded

IGNORED = -100  # transformers' label of tokens without loss


def microbatches(rows: list[Row], at_once: int, length: int, *, dynamic: bool) -> list[tuple[np.ndarray, ...]]:
    """Padded arrays of at most `at_once` rows (0: of all), as equal in number as can be."""
    if dynamic:
        rows = sorted(rows, key=lambda row: -len(row.tokens))
    parts = math.ceil(len(rows) / at_once) if at_once else 1
    groups = [[rows[place] for place in places] for places in np.array_split(np.arange(len(rows)), parts)]
    return [padded(group, max(len(row.tokens) for row in group) if dynamic else length) for group in groups]


def peft(work: Workload, folder: Path, *, dynamic: bool, at_once: int):
    """transformers' model with PEFT's AdaLoRA; gradients of microbatches add up to those of one mean over the step."""
    import torch
    from peft import AdaLoraConfig, get_peft_model

    on_gpu = os.environ.get("JAX_PLATFORMS") != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(workload.SEED)
    model = workload.transformers_model(work, folder)
    adapter = AdaLoraConfig(
        init_r=workload.RANK, target_r=workload.TARGET_RANK, lora_alpha=int(workload.ALPHA),
        lora_dropout=workload.DROPOUT, beta1=workload.BETA, beta2=workload.BETA, deltaT=workload.DELTA_T, tinit=1,
        tfinal=workload.TOTAL_STEPS // 10, total_step=workload.TOTAL_STEPS, orth_reg_weight=workload.ORTHOGONALITY,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(model, adapter).to(device).train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=workload.LEARNING_RATE, weight_decay=0.0)

    def step(number: int, parts: list[tuple[np.ndarray, ...]]) -> float:
        total = sum(int(answer[:, 1:].sum()) for _, _, answer in parts)
        loss = torch.zeros((), device=device)
        for part in parts:
            tokens, mask, answer = (torch.from_numpy(array).to(device) for array in part)
            tokens = tokens.long()
            output = model(
                input_ids=tokens, attention_mask=mask.long(), labels=tokens.masked_fill(~answer, IGNORED),
                num_items_in_batch=torch.tensor(total, device=device), use_cache=False,
            )  # fmt: skip
            output.loss.backward()
            loss += output.loss.detach()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        model.base_model.update_and_allocate(number + 1)
        optimizer.zero_grad()
        return float(loss)

    def penalty(parts: int) -> float:
        """What PEFT adds to the loss, once for every microbatch."""
        factors = [w for name, w in model.named_parameters() if "lora_A" in name or "lora_B" in name]
        grams = [f @ f.T if f.shape[0] < f.shape[1] else f.T @ f for f in (f.detach() for f in factors)]
        norms = [torch.norm(gram - torch.eye(len(gram), device=device)) for gram in grams]
        return parts * workload.ORTHOGONALITY * float(sum(norms)) / len(norms)

    def steps(first: int, count: int) -> list[tuple[float, float]]:
        measured = []
        for number in range(first, first + count):
            parts = microbatches(work.of_step(number), at_once, work.sequence_length, dynamic=dynamic)
            extra = penalty(len(parts))
            start = time.perf_counter()
            loss = step(number, parts)
            measured.append((time.perf_counter() - start, loss - extra))
        return measured

    return steps


def keras_hub(work: Workload, folder: Path, *, at_once: int):
    """keras-hub's causal language model on JAX, compiled, with LoRA on what `enable_lora` wraps (query and value)."""
    import keras
    from keras_hub.models import GemmaCausalLM

    keras.utils.set_random_seed(workload.SEED)
    backbone = workload.keras_hub_backbone(work, folder)
    backbone.enable_lora(workload.RANK)
    model = GemmaCausalLM(backbone)
    rows = len(work.of_step(0))
    parts = math.ceil(rows / at_once) if at_once else 1
    optimizer = keras.optimizers.AdamW(
        workload.LEARNING_RATE, weight_decay=0.0, gradient_accumulation_steps=parts if parts > 1 else None
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, weighted_metrics=[], jit_compile=True)

    def steps(first: int, count: int) -> list[tuple[float, float]]:
        inputs, targets, weights = [], [], []
        for number in range(first, first + count):
            tokens, mask, answer = padded(work.of_step(number), work.sequence_length)
            fill = -len(tokens) % parts  # rows that make the microbatches equal
            tokens, mask, answer = (np.pad(array, ((0, fill), (0, 0))) for array in (tokens, mask, answer))
            inputs.append((tokens, mask))
            targets.append(np.pad(tokens[:, 1:], ((0, 0), (0, 1))))
            weights.append(np.pad(answer[:, 1:], ((0, 0), (0, 1))).astype(np.float32))
        tokens, mask = (np.concatenate(arrays) for arrays in zip(*inputs, strict=True))
        target, weight = np.concatenate(targets), np.concatenate(weights)
        size = len(tokens) // (count * parts)
        clock = _clock_class()(parts)
        model.fit(
            {"token_ids": tokens, "padding_mask": mask}, target, sample_weight=weight, batch_size=size,
            shuffle=False, verbose=0, callbacks=[clock],
        )  # fmt: skip
        # `fit` averages over all positions (and steps), so that the mean over those with loss is another one.
        mean = clock.loss * weight.size / float(weight.sum())
        return [(seconds, mean) for seconds in clock.seconds]

    return steps


def _clock_class():
    import keras

    class Clock(keras.callbacks.Callback):
        """Seconds of every optimizer step of one `fit`, and its last report of the loss."""

        def __init__(self, parts: int):
            super().__init__()
            self.parts, self.loss = parts, math.nan
            self.seconds: list[float] = []

        def on_train_batch_begin(self, batch, logs=None):
            if batch % self.parts == 0:
                self._start = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            self.loss = float(logs["loss"])  # waits for the device
            if batch % self.parts == self.parts - 1:
                self.seconds.append(time.perf_counter() - self._start)

    return Clock
