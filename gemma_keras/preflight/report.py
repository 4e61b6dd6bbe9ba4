"""What preflight says about a compiled program: as data, as text, and what to change when it does not fit."""

from types import SimpleNamespace
from typing import Any, NamedTuple

from gemma_keras.config.stages import PreflightConfig
from gemma_keras.preflight.hardware import Hardware
from gemma_keras.training.program import describe_reach


class Roofline(NamedTuple):
    """Seconds of a step that each resource takes at its published peak, and the longest of them."""

    compute_seconds: float
    memory_seconds: float
    collective_seconds: float
    bound: str

    @classmethod
    def of(cls, flops: float, hbm_bytes: float, sent_bytes: float, hardware: Hardware) -> "Roofline":
        """From what one device computes, moves and sends in a step."""
        seconds = {
            "compute": flops / hardware.flops,
            "memory": hbm_bytes / hardware.memory_bandwidth,
            "collective": sent_bytes / hardware.ring_bandwidth,
        }
        compute, memory, collective = seconds.values()
        return cls(compute, memory, collective, bound=max(seconds, key=lambda name: seconds[name]))

    def step_seconds(self, utilisation: float) -> float:
        """Seconds of a step whose matmuls reach this share of the peak, collectives being hidden behind them."""
        return max(self.compute_seconds / utilisation, self.memory_seconds, self.collective_seconds)


def advice(config: PreflightConfig, mesh: dict[str, int], remat: str, shard_sequence: bool) -> list[str]:
    """What to change when a training step does not fit, the cheapest change first."""
    rows = config.train.batch_rows // config.train.accumulation
    data, model = mesh["data"], mesh["model"]
    ideas = []
    if config.adapter.method == "none" and config.model.weights:
        ideas.append("train an adapter: --config.adapter.method=adalora keeps no gradients and moments of the base")
    if remat != "full":
        ideas.append("compute more again: --config.train.remat=full keeps one array a layer")
    if model > 1 and not shard_sequence:
        ideas.append("divide the residual stream over time: --config.parallel.shard_sequence=yes")
    if rows > data:
        accumulation = 2 * config.train.accumulation
        ideas.append(f"halve the rows in memory: --config.train.accumulation={accumulation} takes the same steps")
    if data > 1 and rows > 1:
        ideas.append(
            f"divide heads rather than rows: --config.parallel.data={data // 2} --config.parallel.model={model * 2}"
        )
    elif model > 1 and rows % (data * 2) == 0:
        ideas.append(
            f"divide rows rather than heads: --config.parallel.data={data * 2} --config.parallel.model={model // 2}"
        )
    if rows > 1:
        ideas.append("take fewer rows a step: --config.train.batch_rows")
    ideas.append("take shorter rows (--config.data.sequence_length), a smaller model, or more devices (--topology)")
    return ideas


def decoding_advice(config: PreflightConfig) -> list[str]:
    """What to change when decoding does not fit, the cheapest change first."""
    ideas = []
    if config.inference.weights == "auto":
        ideas.append("keep weights as 8-bit integers: --config.inference.weights=int8")
    if config.inference.cache == "auto":
        ideas.append("keep keys and values as 8-bit integers: --config.inference.cache=int8")
    if config.inference.max_rows > 1:
        ideas.append("take fewer rows at once: --config.inference.max_rows")
    return [
        *ideas,
        "take shorter prompts or answers (--config.prompt_tokens, --config.sampling.max_new_tokens), a smaller model, or "
        "more devices (--topology)",
    ]


def describe(figures: dict[str, Any]) -> str:
    """The account for people of what preflight.json holds (`run.examine`)."""
    report = SimpleNamespace(**figures)
    lines = [
        f"{report.architecture}: {report.program} program for {report.topology} ({report.devices} x {report.device})",
        f"  mesh           data {report.mesh['data']} x model {report.mesh['model']}"
        f"{', residual stream divided over time' if report.shard_sequence else ''}; attention: {report.attention}"
        f"{f'; recompute: {report.remat}' if report.program == 'train' else ''}",
        *_memory_lines(report),
        *_flops_lines(report),
        *_collective_lines(report),
        *_time_lines(report),
        *([f"  adapters       {describe_reach(report.adapter_reach)}"] if report.adapter_reach is not None else []),
        f"  compiled in {report.compile_seconds:.0f} s by libtpu {report.versions.get('libtpu', '')}",
    ]
    if not report.fits:
        lines += ["", "To make it fit, in this order:", *(f"  {i}. {idea}" for i, idea in enumerate(report.advice, 1))]
    return "\n".join(lines)


def _memory_lines(report: SimpleNamespace) -> list[str]:
    asked = "more than there is" if report.gib_per_chip is None else f"{report.gib_per_chip:.2f} GiB"
    lines = [
        f"  memory         {asked} of {report.gib_limit:.2f} GiB a device: {'fits' if report.fits else 'DOES NOT FIT'}"
    ]
    if report.arguments_gib is not None:
        lines.append(
            f"                 arguments {report.arguments_gib:.2f}, temporaries {report.temporaries_gib:.2f}, outputs "
            f"{report.outputs_gib:.2f} of which {report.aliased_gib:.2f} in the place of arguments"
        )
    if len(report.tried) > 1:
        tried = (f"{t['remat']} {'fits' if t['fits'] else 'does not fit'}" for t in report.tried)
        lines.append(f"                 policies tried: {', '.join(tried)}")
    return lines


def _flops_lines(report: SimpleNamespace) -> list[str]:
    head = (
        f"  matmuls        {report.matmul_flops_per_step:.3g} FLOPs a step of {report.tokens_per_step:,} tokens; a token: "
        f"{report.matmul_flops_per_token_over_n:.2f} N + {report.attention_flops_per_token_over_n:.2f} N in attention, "
        f"N = {report.parameters:,}"
    )
    if report.loops_of_unknown_length:
        head += f" ({report.loops_of_unknown_length} loops of unknown length counted once)"
    kernels = [
        f"                 {k['count']} x {k['name']} ({k['phase']}{', soft cap' if k['soft_cap'] else ''})"
        for k in report.kernels
    ]
    if len(report.kernel_visits) > 1:
        visits = ", ".join(f"{v['blocks']} in {v['count']} of them" for v in report.kernel_visits)
        kernels.append(f"                 blocks of keys and queries that a head visits: {visits}")
    return [head, *kernels]


def _collective_lines(report: SimpleNamespace, most: int = 12) -> list[str]:
    lines = [
        f"  {'collectives    ' if i == 0 else '               '}{sums['count']} x {kind}, {_size(sums['bytes'])}"
        for i, (kind, sums) in enumerate(report.collectives_by_kind.items())
    ]
    for line in report.collectives[:most]:
        lines.append(
            f"                 {line['count']:5} x {line['kind']:<18} {_size(line['bytes']):>10}  {line['why']} "
            f"(groups of {line['group']})"
        )
    if len(report.collectives) > most:
        lines.append(f"                 and {len(report.collectives) - most} smaller kinds, in preflight.json")
    if report.collectives:
        lines.append(
            f"                 a device sends {report.bytes_sent_per_step / 1e9:.1f} GB, "
            f"{report.synchronous_bytes_sent_per_step / 1e9:.1f} of it synchronously, with nothing beside"
        )
    return lines


def _time_lines(report: SimpleNamespace) -> list[str]:
    if report.roofline is None or report.step_seconds is None:
        return []
    r = report.roofline
    lines = [
        f"  at the peaks   compute {r['compute_seconds']:.3f} s, HBM {r['memory_seconds']:.3f} s "
        f"({report.hbm_bytes_per_step / 1e9:.0f} GB), collectives "
        f"{r['collective_seconds']:.3f} s: bound by {r['bound']}",
        f"  estimated      {report.step_seconds:.3f} s a step, {report.tokens_per_second:,.0f} tokens/s, "
        f"{report.hours_per_million_tokens:.3f} hours a million tokens, at {report.utilisation:.0%} of the matmul peak",
    ]
    if report.hbm_bytes_over_least is not None:
        lines.append(
            f"                 each step moves {report.hbm_bytes_over_least:.2f} times the bytes of weights and cache"
        )
    if report.hours is not None:
        lines.append(f"                 {report.hours:.1f} hours for {report.steps:,} steps")
    return lines


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
