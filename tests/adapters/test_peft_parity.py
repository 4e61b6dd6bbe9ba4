"""AdaLoRA against the peft library: same weights, same batches, every phase."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from peft import AdaLoraConfig, get_peft_model

from gemma_keras.adapters.inject import adapter_stacks, add_adapters, initial_adapter_params, merge
from gemma_keras.adapters.rank_allocator import RankAllocator, resolve_schedule
from gemma_keras.config.sections import AdapterConfig, OptimConfig
from gemma_keras.models.architecture import Architecture
from gemma_keras.models.families.registry import to_hf_config
from gemma_keras.models.forward import build_backbone, forward, logits
from gemma_keras.models.hf_names import hf_tensors
from gemma_keras.models.stacking import UnstackedParams, stack_params
from gemma_keras.training.objectives.supervised import Supervised, supervised_sums
from gemma_keras.training.optimizers import make_optimizer
from gemma_keras.training.state import initial_state
from gemma_keras.training.step import StepSettings, make_train_step
from tests.models.conftest import small, small_gemma3

STEPS, BATCH, LENGTH = 60, 4, 24
ARCHITECTURE = small(num_layers=2)
GEMMA3 = small_gemma3(num_layers=3, period=2)  # one layer is left over
ADAPTER = AdapterConfig(
    method="adalora", init_r=6, target_r=3, alpha=60.0, dropout=0.0, delta_t=5, tinit=8, tfinal=20, peft_compatible=True
)
LEARNING_RATES = {"sgd": 0.5, "adamw": 1e-2}
PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "attention_output": "o_proj"}


def base_tensors(architecture: Architecture = ARCHITECTURE) -> dict[str, np.ndarray]:
    """HF tensors at a scale at which training is smooth, norm scales not zero."""
    rng = np.random.default_rng(3)
    return {
        tensor.name: rng.normal(0, 0.2 if len(tensor.hf_shape) == 1 else tensor.hf_shape[1] ** -0.5, tensor.hf_shape)
        .astype(np.float32)
        for tensor in hf_tensors(architecture)
    }  # fmt: skip


def token_batches() -> np.ndarray:
    """[steps, B, T + 1] tokens with a pattern to learn: each next token is a fixed function of the last, mostly."""
    rng = np.random.default_rng(5)
    follower = rng.permutation(ARCHITECTURE.vocabulary_size)
    tokens = rng.integers(0, ARCHITECTURE.vocabulary_size, (STEPS, BATCH, LENGTH + 1))
    for column in range(1, LENGTH + 1):
        copied = rng.random((STEPS, BATCH)) < 0.8
        tokens[:, :, column] = np.where(copied, follower[tokens[:, :, column - 1]], tokens[:, :, column])
    return tokens


class Peft:
    """transformers + peft, stepped by hand as peft's documentation shows."""

    def __init__(self, optimizer: str, adapter_params: dict[str, np.ndarray], architecture: Architecture):
        config = transformers.AutoConfig.for_model(**to_hf_config(architecture, "float32"), attn_implementation="eager")
        model = transformers.AutoModelForCausalLM.from_config(config)
        model.load_state_dict({k: torch.tensor(v) for k, v in base_tensors(architecture).items()}, strict=False)
        self.model = get_peft_model(model, AdaLoraConfig(
            init_r=ADAPTER.init_r, target_r=ADAPTER.target_r, lora_alpha=ADAPTER.alpha, lora_dropout=0.0, tinit=8,
            tfinal=20, deltaT=5, beta1=0.85, beta2=0.85, orth_reg_weight=0.5, total_step=STEPS,
            target_modules=list(PROJECTIONS.values()), task_type="CAUSAL_LM",
        ))  # fmt: skip
        self.weights = dict(self.model.named_parameters())
        with torch.no_grad():
            for path, value in adapter_params.items():
                weight = self.weights[self.name(path)]
                weight.copy_(torch.tensor(np.asarray(value)).reshape(weight.shape))
        trained = [weight for weight in self.weights.values() if weight.requires_grad]
        rate = LEARNING_RATES[optimizer]
        self.optimizer = (
            torch.optim.SGD(trained, lr=rate)
            if optimizer == "sgd"
            else torch.optim.AdamW(trained, rate, weight_decay=0)
        )

    @staticmethod
    def name(path: str) -> str:
        """decoder_block_0/attention/query/adalora/lora_A -> the parameter's name in peft."""
        block, _, projection, _, weight = path.split("/")
        layer = block.removeprefix("decoder_block_")
        return f"base_model.model.model.layers.{layer}.self_attn.{PROJECTIONS[projection]}.{weight}.default"

    def step(self, t: int, tokens: np.ndarray) -> float:
        """One optimizer step; returns the loss with the penalty, as peft computes it."""
        inputs = torch.tensor(tokens)
        self.optimizer.zero_grad()
        loss = self.model(input_ids=inputs, labels=inputs).loss
        loss.backward()
        self.optimizer.step()
        self.model.base_model.update_and_allocate(t)
        return loss.item()

    def survivors(self, path: str) -> np.ndarray:
        pattern = self.model.peft_config["default"].rank_pattern
        key = self.name(path)
        return np.array(pattern[key if key in pattern else key.removeprefix("base_model.model.")])


class Ours:
    """The project's own train step on the same model."""

    def __init__(self, optimizer: str, config: AdapterConfig = ADAPTER, architecture: Architecture = ARCHITECTURE):
        self.backbone = build_backbone(architecture, "float32")
        self.matrices = add_adapters(self.backbone, config)
        self.allocator = RankAllocator(adapter_stacks(self.matrices), config)
        self.schedule = resolve_schedule(config, STEPS, len(self.matrices))
        self.rate = LEARNING_RATES[optimizer]
        tensors = base_tensors(architecture)
        self.frozen = stack_params({t.path: jnp.asarray(t.from_hf(tensors[t.name])) for t in hf_tensors(architecture)})
        self.initial = {k: np.asarray(v) for k, v in initial_adapter_params(self.matrices, 0).items()}
        transform = make_optimizer(OptimConfig(name=optimizer))

        def loss(trainable, frozen, batch, key):
            return supervised_sums(self.backbone, {**frozen, **trainable}, batch, training=True)

        self._step = make_train_step(loss, transform, allocator=self.allocator)
        adapters = stack_params({k: jnp.asarray(v) for k, v in self.initial.items()})
        self.state = initial_state(adapters, transform, self.allocator, Supervised.metrics)

    def params(self) -> dict:
        """All weights, by path."""
        return dict(UnstackedParams({**self.frozen, **self.state.trainable}))

    def alive(self) -> np.ndarray:
        """Survivors of all matrices, in the order of the layers."""
        alive = self.state.allocator.alive
        return np.stack([np.asarray(alive[stack.name]) for stack in self.allocator.stacks], axis=1).reshape(-1)

    def step(self, t: int, tokens: np.ndarray) -> dict[str, float]:
        inputs = tokens[:, :-1].astype(np.int32)
        batch = {
            "tokens": inputs,
            "targets": tokens[:, 1:].astype(np.int32),
            "loss_weights": np.ones(inputs.shape, np.float32),
            "segment_ids": np.ones_like(inputs),
            "positions": np.broadcast_to(np.arange(inputs.shape[1], dtype=np.int32), inputs.shape),
        }
        settings = StepSettings(np.float32(self.rate), self.schedule.phase(t))
        self.state, metrics = self._step(self.state, self.frozen, batch, settings)
        return {name: float(metrics[name]) for name in ("loss", "penalty")}


@pytest.mark.parametrize(
    "optimizer, architecture",
    [
        pytest.param("sgd", ARCHITECTURE, marks=pytest.mark.long, id="sgd"),
        pytest.param("adamw", ARCHITECTURE, id="adamw"),
        pytest.param("adamw", GEMMA3, marks=pytest.mark.long, id="adamw, Gemma 3"),
    ],
)
def test_sixty_steps_equal_peft(optimizer, architecture):
    ours = Ours(optimizer, architecture=architecture)
    peft = Peft(optimizer, ours.initial, architecture)
    schedule = ours.schedule
    losses, allocations = [], 0
    for t, tokens in enumerate(token_batches(), start=1):
        metrics = ours.step(t, tokens)
        expected = peft.step(t, tokens)
        assert metrics["loss"] + metrics["penalty"] == pytest.approx(expected, rel=1e-4), f"step {t}"
        losses.append(metrics["loss"])
        if schedule.allocates(t):
            allocations += 1
            _assert_same_survivors(ours, peft, t)
    assert allocations == 7  # 10, 15, ..., 40
    assert (
        np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.1
    )  # it did learn, so the comparison is not one of two models standing still
    assert ours.alive().sum() == ADAPTER.target_r * len(ours.matrices)


def _assert_same_survivors(ours: Ours, peft: Peft, t: int) -> None:
    scores = np.asarray(ours.allocator.triplet_scores(ours.state.allocator))
    threshold = np.sort(scores)[::-1][ours.schedule.budget(t) - 1]
    clear = np.abs(scores - threshold) > 1e-5 * threshold
    clear[np.argmin(np.abs(scores - threshold))] = True  # the last survivor itself is compared too
    theirs = np.concatenate([peft.survivors(m.path("lora_E")) for m in ours.matrices])
    np.testing.assert_array_equal(ours.alive()[clear], theirs[clear], err_msg=f"step {t}")


@pytest.mark.long
def test_merged_weights_compute_what_the_adapter_computes():
    ours = Ours("adamw")
    for t, tokens in enumerate(token_batches()[:12], start=1):
        ours.step(t, tokens)
    params = ours.params()
    merged = merge(ours.matrices, params)
    plain = build_backbone(ARCHITECTURE, "float32")
    assert set(merged) == {weight.path for weight in plain.weights}
    tokens = jnp.asarray(token_batches()[0][:, :-1], jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    run = jax.jit(lambda b, p: logits(b, p, forward(b, p, tokens, positions, jnp.ones_like(tokens))), static_argnums=0)
    with_adapter, with_merged = run(ours.backbone, params), run(plain, merged)
    assert np.abs(np.asarray(with_adapter - run(plain, dict(UnstackedParams(ours.frozen))))).max() > 1e-2
    np.testing.assert_allclose(with_merged, with_adapter, atol=2e-4)


@pytest.mark.long
def test_final_phase_of_ours_reaches_its_budget():
    config = AdapterConfig(**{f: getattr(ADAPTER, f) for f in ADAPTER.__slots__} | {"peft_compatible": False})
    ours = Ours("adamw", config)
    for t, tokens in enumerate(token_batches(), start=1):
        ours.step(t, tokens)
    sizes = np.array([matrix.adapter.d_in + matrix.adapter.d_out + 1 for matrix in ours.matrices])
    left = int(np.asarray(ours.allocator.ranks(ours.state.allocator)) @ sizes)
    budget = ADAPTER.target_r * sizes.sum()  # ours counts weights, PEFT's triplets
    assert budget - sizes.max() < left <= budget
    for stack in ours.allocator.stacks:
        dead = ~np.asarray(ours.state.allocator.alive[stack.name])
        assert not np.asarray(ours.state.trainable[stack.path("lora_E")])[dead].any()
