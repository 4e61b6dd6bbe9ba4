"""How much adapters learn, method against method, at equal budgets, each at its own best learning rate.

One base tunes on stage-1 rows with every method at every rank of `--ranks`, all seven projections. Rates lie a factor of 3 apart
and are chosen by the loss of responses on 300 development rows; a best rate at the edge widens the grid. The best rate is
repeated with other seeds, and measured on the 800 validation rows of stage 1, row by row: intervals are of the mean over seeds,
by resampling rows in pairs. With `--further`, the two best methods alone: at rank 32, there with alpha over the root of the rank
(rsLoRA, arXiv 2312.03732), and on attention only. Every run keeps its figures, so that the same command goes on where it stopped,
and prints the tables again when nothing is left. A folder is for one model: give another model another one.

    python -m benchmarks.adapter_quality --workdir=DIR --data_root=CORPORA
    python -m benchmarks.adapter_quality --workdir=DIR2 --data_root=CORPORA --model=GEMMA3_270M --methods=lora,adalora \
        --ranks=8 --rates=3 --tokens=30000 --seed_tokens=100000 --seeds=2 --jobs=1      (or on a GPU, whatever JAX finds)

Without `--model` a base of 10 million weights is pretrained first, on the texts of the corpora.
"""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from filelock import FileLock

from gemma_keras import runtime

WORKDIR = flags.DEFINE_string("workdir", "runs/adapter_quality", "folder of the base, the data and every run")
DATA_ROOT = flags.DEFINE_string("data_root", "../shared/data", "folder of the corpora")
MODEL = flags.DEFINE_string("model", "", "weights to tune; empty: a base of 10 million weights, pretrained here")
CHOSEN = flags.DEFINE_list("methods", ["lora", "published", "adalora", "gradient"], "names of METHODS")
RANKS = flags.DEFINE_list("ranks", ["2", "8"], "average ranks at the end")
FURTHER = flags.DEFINE_bool("further", False, "also what the two best methods alone are tried at")
RATES = flags.DEFINE_integer("rates", 4, "rates of a grid before it is widened")
SEEDS = flags.DEFINE_integer("seeds", 3, "runs at the best rate")
TOKENS = flags.DEFINE_integer("tokens", 200_000, "tokens of the packed rows of a run")
SEED_TOKENS = flags.DEFINE_integer("seed_tokens", 0, "the same of the runs at the best rate; 0: as many")
BATCH_ROWS = flags.DEFINE_integer("batch_rows", 2, "packed rows of a step")
JOBS = flags.DEFINE_integer("jobs", 2, "runs at once, a core each; 1: one after the other, on all cores")
GROUP = flags.DEFINE_string("group", "", "of this command's own processes: the group that it runs")

ATTENTION = ("query", "key", "value", "attention_output")
TARGETS = {"all": (*ATTENTION, "ffw_gating", "ffw_gating_2", "ffw_linear"), "attention": ATTENTION}
LENGTH, DEVELOPMENT_ROWS, WIDEST, FACTOR, RESAMPLES = 512, 300, 8, 3.0, 10_000
# Of a rate at which the loss was not finite.
DIVERGED = {"loss_response": float("inf"), "perplexity_response": float("inf")}
CORPORA, TEXTS = ("belle", "alpaca_gpt4_zh", "alpaca_chinese"), ("zh_wiki", "cluecorpussmall")


@dataclasses.dataclass(frozen=True)
class Method:
    """How an adapter is tuned: fields of AdapterConfig, alpha over the initial rank, and the initial rank over the final one.

    `rate` is in the middle of its grid; `start` is a function of `adapter_starts`.
    """

    rate: float
    alpha: float
    adapter: dict[str, Any]
    over: float = 1.0
    start: str = ""


METHODS = {
    "lora": Method(3e-3, 2.0, {"method": "lora"}),
    # As published: alpha is half the initial rank, which is twice the final one.
    "published": Method(1e-2, 0.5, {"method": "adalora", "orth_reg_weight": 0.5}, over=2.0),
    "adalora": Method(3e-3, 2.0, {"method": "adalora", "start": "zero_B", "orth_reg_weight": 0.0}, over=1.5),
    "gradient": Method(
        3e-3, 2.0, {"method": "adalora", "start": "zero_B", "orth_reg_weight": 0.0}, over=1.5, start="gradient_start"
    ),
    # From noise, with singular values that move as fast as LoRA's.
    "noise": Method(3e-3, 16.0, {"method": "adalora", "orth_reg_weight": 0.1}, over=1.5),
    "kernel": Method(
        3e-3, 2.0, {"method": "adalora", "start": "zero_B", "orth_reg_weight": 0.0}, over=1.5, start="kernel_start"
    ),
}


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in rate and seed only."""

    method: str
    rank: int
    targets: str = "all"
    scaling: str = "rank"

    @classmethod
    def of(cls, name: str) -> "Group":
        """The group of a name."""
        method, rank, targets, scaling = name.split(":")
        return cls(method, int(rank), targets, scaling)

    def __str__(self) -> str:
        return f"{self.method}:{self.rank}:{self.targets}:{self.scaling}"


def main(argv: list[str]) -> None:
    runtime.configure()
    folder = Path(WORKDIR.value)
    if GROUP.value:
        run_group(folder, Group.of(GROUP.value))
        return
    model = MODEL.value or pretrain(folder / "base")
    groups = [Group(method, int(rank)) for rank in RANKS.value for method in CHOSEN.value]
    run_all(groups, model)
    if FURTHER.value:
        two = sorted(
            CHOSEN.value, key=lambda method: sum(best(folder, g)["loss"] for g in groups if g.method == method)
        )[:2]
        further = [
            Group(m, r, t, s)
            for m in two
            for r, t, s in ((32, "all", "rank"), (32, "all", "root"), (8, "attention", "rank"))
        ]
        run_all(further, model)
        groups += further
    print(report(folder, groups))


def pretrain(workdir: Path) -> str:
    """The small base: its export, from a run that goes on where it stopped."""
    from gemma_keras.config import sections
    from gemma_keras.config.stages import PretrainConfig
    from gemma_keras.stages import training

    corpora = [sections.CorpusConfig(name=name) for name in TEXTS]
    corpora += [sections.CorpusConfig(name=name, limit=300) for name in CORPORA]  # for the turn tokens' embeddings
    config = PretrainConfig(
        tokenizer=sections.TokenizerConfig(vocabulary_size=8192),
        model=sections.ModelConfig(architecture="gemma2_10m", dtype="float32"),
        data=sections.DataConfig(
            root=DATA_ROOT.value, corpora=tuple(corpora), validation_rows=100, template="gemmalm_zh", loss_on="all",
            sequence_length=LENGTH,
        ),
        optim=sections.OptimConfig(learning_rate=3e-3, warmup=0.05, weight_decay=0.1, beta2=0.95),
        train=sections.TrainConfig(epochs=1, batch_rows=4, log_every=20, save_every=50),
        export=sections.ExportConfig(dtype="float32"),
    )  # fmt: skip
    return training.run(config, workdir)["export_dir"]


def run_all(groups: list[Group], model: str) -> None:
    """Runs the groups, so many at once as there are jobs, each in a process of its own."""
    waiting, cores = list(reversed(groups)), list(range(JOBS.value))
    running: dict[subprocess.Popen[bytes], int] = {}
    while waiting or running:
        while waiting and cores:
            core, group = cores.pop(), waiting.pop()
            command = [
                sys.executable,
                "-m",
                "benchmarks.adapter_quality",
                *sys.argv[1:],
                f"--group={group}",
                f"--model={model}",
            ]
            pinned = (lambda core=core: os.sched_setaffinity(0, {core})) if JOBS.value > 1 else None
            running[subprocess.Popen(command, preexec_fn=pinned)] = core
        for process in [process for process in running if process.poll() is not None]:
            cores.append(running.pop(process))
            if process.returncode:
                for other in running:
                    other.terminate()
                raise SystemExit(process.returncode)
        time.sleep(0.5)


def configuration(group: Group, rate: float, seed: int, tokens: int):
    """The configuration of one run."""
    from gemma_keras.config import sections
    from gemma_keras.config.stages import SftConfig

    how = METHODS[group.method]
    first = round(group.rank * how.over)
    alpha = how.alpha * (8 * first**0.5 if group.scaling == "root" else first)
    return SftConfig(
        model=sections.ModelConfig(weights=MODEL.value, dtype="float32"),
        data=sections.DataConfig(
            root=DATA_ROOT.value, corpora=tuple(sections.CorpusConfig(name=name) for name in CORPORA),
            validation_rows=DEVELOPMENT_ROWS, template="gemmalm_zh", sequence_length=LENGTH,
            cleaning=sections.CleaningConfig(contamination=("gemmalm_chinese",)),
            system_prompts=sections.SystemPromptConfig(none=0.5, fixed=0.5),
        ),
        adapter=sections.AdapterConfig(
            targets=TARGETS[group.targets], init_r=first, target_r=group.rank, alpha=alpha, dropout=0.0, delta_t=5, tinit=0.1,
            tfinal=0.3, **how.adapter,
        ),
        optim=sections.OptimConfig(learning_rate=rate, warmup=0.05),
        train=sections.TrainConfig(
            tokens=tokens, batch_rows=BATCH_ROWS.value, log_every=0.05, eval_every=0, save_every=10**6, keep_checkpoints=1,
            seed=seed,
        ),
    )  # fmt: skip


def run_group(folder: Path, group: Group) -> None:
    """The grid of rates, then the seeds at the best, whose validation rows are scored one by one."""
    tried: dict[int, float] = {}
    wanted = list(range(-(RATES.value // 2), RATES.value - RATES.value // 2))
    while wanted:
        for power in wanted:
            tried[power] = run(folder, group, power, 0, TOKENS.value)["development"]["loss_response"]
        chosen = min(tried, key=tried.__getitem__)
        edges = {min(tried): min(tried) - 1, max(tried): max(tried) + 1}
        wanted = [edges[chosen]] if RATES.value > 1 and chosen in edges and len(tried) < WIDEST else []
    for seed in range(SEEDS.value):
        run(folder, group, chosen, seed, SEED_TOKENS.value or TOKENS.value, score=True)


def run(folder: Path, group: Group, power: int, seed: int, tokens: int, score: bool = False) -> dict[str, Any]:
    """One run at the method's rate times FACTOR to this power, or its figures where they are there."""
    from benchmarks import adapter_starts
    from gemma_keras.config.errors import UserError
    from gemma_keras.config.serialization import to_dict
    from gemma_keras.data.prepare import prepare
    from gemma_keras.stages.running import workdir as files
    from gemma_keras.stages.running.training_run import TrainingRun
    from gemma_keras.training.hooks import NonFiniteError
    from gemma_keras.training.program import adapter_reach

    how = METHODS[group.method]
    rate = how.rate * FACTOR**power
    workdir = folder / "runs" / f"{str(group).replace(':', '-')}-{rate:.2g}-{tokens}-{seed}"
    figures = files.read_json(workdir / "figures.json")
    if figures and (not score or (workdir / "nll.npy").exists()):
        return figures
    config = configuration(group, rate, seed, tokens)
    files.begin(workdir, to_dict(config))
    training = TrainingRun(config, workdir)
    with FileLock(folder / "data.lock"):
        prepare(training.data, training.tokenizer, folder / "data", lambda line: None)
        validation = validation_rows(folder, training.tokenizer)
    if not (workdir / "data").exists():
        (workdir / "data").symlink_to((folder / "data").resolve())
    training.prepare()
    training.compile()
    if how.start and not figures:
        training.trainable = getattr(adapter_starts, how.start)(training)
    started = time.perf_counter()
    try:
        state = training.fit()
    except UserError as error:
        if score or not isinstance(error.__cause__, NonFiniteError):
            raise
        figures = {"group": str(group), "rate": rate, "seed": seed, "tokens": tokens, "development": DIVERGED}
        files.write_json(workdir / "figures.json", figures)
        return figures
    figures = figures or {
        "group": str(group), "rate": rate, "seed": seed, "steps": training.last_step, "tokens": tokens,
        "reach": adapter_reach(training.program.matrices, config.optim, training.last_step),
        "seconds": time.perf_counter() - started, "development": training.evaluate(state.trainable),
        "weights": kept_weights(training, state), "ranks": ranks(training, state),
    }  # fmt: skip
    if score:
        scored = workdir / "unfinished.npy"
        np.save(scored, score_rows(training, state.trainable, validation))
        scored.replace(workdir / "nll.npy")  # which is there as a whole or not at all
    files.write_json(workdir / "figures.json", figures)
    print(f"{workdir.name}: development perplexity {figures['development']['perplexity_response']:.3f}", flush=True)
    return figures


def ranks(training, state) -> dict[str, list[int]]:
    """Triplets that are left, by projection, block after block; empty without ranks to allocate."""
    if state.allocator is None:
        return {}
    return {name: np.asarray(alive).sum(axis=1).tolist() for name, alive in state.allocator.alive.items()}


def kept_weights(training, state) -> int:
    """Weights of the adapters at the end, without those of pruned triplets."""
    from gemma_keras.adapters.inject import adapter_stacks

    left = ranks(training, state)
    return sum(
        sum(left.get(s.name, [s.adapter.rank] * len(s.matrices))) * (s.adapter.d_in + s.adapter.d_out + bool(left))
        for s in adapter_stacks(training.program.matrices)
    )


def validation_rows(folder: Path, tokenizer) -> Path:
    """The prepared validation rows of stage 1."""
    from gemma_keras.config.sections import CorpusConfig, DataConfig
    from gemma_keras.data.prepare import prepare

    config = DataConfig(
        root=DATA_ROOT.value, corpora=(CorpusConfig(name="belle", limit=1),),
        validation=(CorpusConfig(name="gemmalm_chinese"),), template="gemmalm_zh", sequence_length=LENGTH,
    )  # fmt: skip
    prepare(config, tokenizer, folder / "validation", lambda line: None)
    return folder / "validation" / "valid"


def score_rows(training, trainable, validation: Path) -> np.ndarray:
    """Of every validation row the negative log-likelihood of its response, and its tokens, f64[2, rows]."""
    import jax
    import jax.numpy as jnp

    from gemma_keras.data.pipeline import PreparedSplit, evaluation_batches
    from gemma_keras.training.objectives.base import SCORED_ARRAYS, score_targets

    split = PreparedSplit.load(validation)
    program = training.program

    @jax.jit
    def sums(params, batch, row_index):
        weights = batch["loss_weights"]
        log_probs, _ = score_targets(program.backbone, params, batch, weights, plan=program.plan)
        rows = jnp.zeros((2, len(split) + 1))  # padding, of index -1, goes to the last
        return rows.at[:, row_index.reshape(-1)].add(jnp.stack([-log_probs * weights, weights]).reshape(2, -1))

    total = np.zeros((2, len(split) + 1))
    params = {**training.frozen, **trainable}
    for batch in evaluation_batches(split, batch_rows=2):
        total += np.asarray(sums(params, {name: batch[name] for name in SCORED_ARRAYS}, batch["row_index"]), np.float64)
    return total[:, :-1]


def runs_of(folder: Path, group: Group) -> list[tuple[Path, dict[str, Any]]]:
    """The figures of a group's runs, with their folders."""
    from gemma_keras.stages.running.workdir import read_json

    found = [(path, read_json(path / "figures.json")) for path in sorted((folder / "runs").glob("*"))]
    return [(path, figures) for path, figures in found if figures and figures["group"] == str(group)]


def grid_of(runs: list[tuple[Path, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The figures that a rate is chosen by; runs at the best rate may be longer."""
    return [figures for _, figures in runs if figures["seed"] == 0 and figures["tokens"] == TOKENS.value]


def best(folder: Path, group: Group) -> dict[str, Any]:
    """The rate that the development rows chose, its loss there, and negative log-likelihoods f64[seeds, 2, rows]."""
    runs = runs_of(folder, group)
    first = min(grid_of(runs), key=lambda figures: figures["development"]["loss_response"])
    length = SEED_TOKENS.value or TOKENS.value
    repeated = [
        (path / "nll.npy", figures.get("weights"))
        for path, figures in runs
        if (figures["rate"], figures["tokens"]) == (first["rate"], length) and figures["seed"] < SEEDS.value
    ]
    scored, weights = zip(*[(path, kept) for path, kept in repeated if path.exists()], strict=True)
    return {
        "rate": first["rate"], "loss": first["development"]["loss_response"], "reach": first["reach"],
        "weights": float(np.mean(weights)), "nll": np.stack([np.load(path) for path in scored]),
    }  # fmt: skip


def interval(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """Difference of mean losses (means over seeds f64[seeds, 2, rows]), and its 95 % interval over resampled rows."""
    difference, tokens = ours[:, 0].mean(axis=0) - theirs[:, 0].mean(axis=0), ours[0, 1]
    drawn = np.random.default_rng(0).integers(len(tokens), size=(RESAMPLES, len(tokens)))
    found = difference[drawn].sum(axis=1) / tokens[drawn].sum(axis=1)
    low, high = np.quantile(found, (0.025, 0.975))
    return difference.sum() / tokens.sum(), low, high


def report(folder: Path, groups: list[Group]) -> str:
    """Every grid, and of each group the best rate on the validation rows beside LoRA's."""
    lines = [
        "| method | rank | projections | scaling | rate: perplexity of responses on development rows |",
        "|---|---:|---|---|---|",
    ]
    for g in groups:
        grid = {f["rate"]: f["development"]["perplexity_response"] for f in grid_of(runs_of(folder, g))}
        rates = ", ".join(f"{rate:.2g}: {grid[rate]:.2f}" for rate in sorted(grid))
        lines.append(f"| {g.method} | {g.rank} | {g.targets} | {g.scaling} | {rates} |")
    lines += [
        "",
        "| method | rank | projections | scaling | rate | weights kept | reach | perplexity of 800 rows (seeds) | loss "
        "against LoRA (95 %) |",
        "|---|---:|---|---|---:|---:|---:|---|---|",
    ]
    for g in groups:
        own = best(folder, g)
        seeds = np.exp(own["nll"][:, 0].sum(axis=1) / own["nll"][:, 1].sum(axis=1))
        cells = [g.method, str(g.rank), g.targets, g.scaling, f"{own['rate']:.2g}", f"{own['weights']:,.0f}"]
        cells += [f"{own['reach']:.2g}", f"{seeds.mean():.3f} ({seeds.min():.3f} to {seeds.max():.3f})"]
        lora = Group("lora", g.rank, g.targets)
        if g != lora and runs_of(folder, lora):
            difference, low, high = interval(own["nll"], best(folder, lora)["nll"])
            cells.append(f"{difference:+.4f} ({low:+.4f} to {high:+.4f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
