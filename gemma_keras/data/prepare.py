"""A recipe (DataConfig) to a prepared dataset on disk.

    out/train, out/valid   rows as Arrow, and packing plans (see `writing`)
    out/report.json, out/report.md, out/charts/*.png, out/quarantine.jsonl

The result is a function of the configuration, the tokenizer, the source files and the answers of the endpoint that writes
system prompts: the same bytes each time. Corpora stream through: memory holds a few dozen bytes a record.
"""

import dataclasses
import gc
import hashlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

from gemma_keras import builtin
from gemma_keras.config.errors import UserError
from gemma_keras.config.sections import DataConfig
from gemma_keras.config.writing import put_in_place
from gemma_keras.data.encoding.rendering import Renderer
from gemma_keras.data.mixing.mixture import Mixture, mix
from gemma_keras.data.mixing.prompting import FAILED, Prompter
from gemma_keras.data.pools.collecting import Origins, collect, find_origins, set_aside
from gemma_keras.data.pools.holding_out import overlaps
from gemma_keras.data.prepared import FORMAT, is_current, read_report
from gemma_keras.data.progress import Reporter, print_progress
from gemma_keras.data.report import split_report, write_report
from gemma_keras.data.sources import get_source, shown_path
from gemma_keras.text.templates import get_template
from gemma_keras.text.tokenizer import Tokenizer

CONTENTS = 3
"""Raised whenever tokens, plans or order change, so that a run that has begun is not resumed on other rows."""


def prepare(
    config: DataConfig, tokenizer: Tokenizer, out: str | Path, progress: Reporter = print_progress
) -> dict[str, Any]:
    """Prepares training and validation rows under `out`, or finds them there already; returns the report.

    Validation rows come first; training rows that ask the same as one of them are removed. The folder appears only when it is
    complete. With `system_prompts.dry_run` nothing is written, and what is returned is the estimate alone.

    Raises:
        UserError: a corpus is missing or too small, a setting makes no sense, or `out` holds something else.
    """
    out = Path(out)
    check(config)
    origins = find_origins(config, Path(config.root or builtin.CORPUS), progress)
    fingerprint = _fingerprint(config, tokenizer, origins)
    finished = _finished_report(out)
    if is_current(finished) and finished.get("fingerprint") == fingerprint and not config.system_prompts.dry_run:
        failures = finished["system_prompt_failures"]
        again = f", with a fixed system prompt where {failures} could not be had (delete it to ask again)"
        progress(f"prepared data in {out} is up to date{again if failures else ''}")
        return finished

    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    cache = Path(config.system_prompts.cache or out.parent / "system_prompts.sqlite")
    prompter = Prompter(config, cache, tokenizer, progress)
    partial.mkdir(parents=True)
    # What is imported by now stays; without this, the garbage collector walks through it again for every few thousand rows.
    gc.freeze()
    try:
        renderer = Renderer(config, tokenizer, prompter, progress)
        train, valid, compared = collect(config, origins, partial, renderer.usable, progress)
        told = set_aside([*train, *valid])
        for line in told:
            progress(line)
        mixtures = [mix("valid", valid, 0, config), mix("train", train, config.rows, config)]
        for mixture in mixtures:
            prompter.assign(mixture)
        if config.system_prompts.dry_run:
            return prompter.estimate(mixtures)
        report = _write(config, renderer, mixtures, compared, prompter, partial, fingerprint)
        for line in set_aside([*train, *valid]):
            if line not in told:  # rules that count tokens have removed more meanwhile
                progress(line)
        put_in_place(partial, out)
    finally:
        gc.unfreeze()
        prompter.close()
        shutil.rmtree(partial, ignore_errors=True)
    progress(
        f"prepared {report['rows']} training and {report['validation']['rows']} validation rows in {out}, "
        f"useful token share {report['useful_token_share']:.4f}"
    )
    return report


def check(config: DataConfig) -> None:
    """What can be told before anything is read.

    Raises:
        UserError: a setting makes no sense, or goes with none of the others.
    """
    get_template(config.template)
    if not config.corpora and not config.validation:
        raise UserError("data.corpora and data.validation are both empty; name at least one corpus")
    for corpus in (*config.corpora, *config.validation):
        if corpus.kinds and get_source(corpus.name).kind is None:
            raise UserError(
                f"corpus {corpus.name!r} has no kinds, but {', '.join(corpus.kinds)} were asked of it; drop them"
            )
    if config.root and not Path(config.root).is_dir():
        raise UserError(f"data.root={config.root} is no folder; give the folder that holds the corpora")
    if config.validation and config.validation_rows:
        raise UserError("data.validation and data.validation_rows are both set; set only one of them")
    prompts = config.system_prompts
    if prompts.dynamic and not (prompts.endpoint.url and prompts.endpoint.model):
        raise UserError(
            f"data.system_prompts.dynamic is {prompts.dynamic:g}, but nobody is named to write these prompts; set "
            "data.system_prompts.endpoint.url and .model, or set data.system_prompts.dynamic to 0 and "
            f"data.system_prompts.fixed to {prompts.fixed + prompts.dynamic:g}"
        )


def _write(
    config: DataConfig,
    renderer: Renderer,
    mixtures: list[Mixture],
    compared: dict[str, str],
    prompter: Prompter,
    folder: Path,
    fingerprint: str,
) -> dict[str, Any]:
    """Writes both splits and the report, which it returns."""
    parts = {}
    for mixture in mixtures:
        rendered = renderer.render(mixture, folder / mixture.split, fingerprint)
        parts[mixture.split] = split_report(mixture, rendered, config.sequence_length)
    if config.corpora and not parts["train"]["rows"]:
        removed = ", ".join(f"{rule}: {count}" for rule, count in parts["train"]["removed"].items())
        raise UserError(
            f"no training row is left ({removed}); check data.corpora, data.validation, data.validation_rows and data.cleaning"
        )
    kinds = parts["train"]["by_system_prompt"]
    if kinds.get(FAILED, 0) and not kinds.get("dynamic", 0):
        raise UserError(
            f"none of the {kinds[FAILED]} system prompts could be had from {config.system_prompts.endpoint.url} "
            f"({prompter.failures()[-1]['reason']}); check data.system_prompts.endpoint, or set data.system_prompts.dynamic to 0"
        )
    valid, train = (mixture.pools for mixture in mixtures)
    common = overlaps(train, valid)
    assert not any(common.values()), common
    report = {
        "fingerprint": fingerprint,
        "format": FORMAT,
        "sequence_length": config.sequence_length,
        **parts["train"],
        "validation": parts["valid"],
        **common,
        "contamination": compared,
        "system_prompt_failures": len(prompter.failures()),
    }
    write_report(folder, report, prompter.failures())
    return report


def _fingerprint(config: DataConfig, tokenizer: Tokenizer, origins: Origins) -> str:
    """Hash of everything that tokens, plans and order follow from; files count by their content, not by where they lie."""
    settings = dataclasses.asdict(config) | {"template": get_template(config.template).name}
    settings |= {"root": "", "earlier": (), "missing": "", "loss_on": ""}
    if config.packing:
        del settings["packing"]  # which earlier versions did not know, and did
    endpoint = config.system_prompts.endpoint
    # Of the endpoint only what decides its answers, not how they are had.
    answers = [endpoint.model, endpoint.temperature, endpoint.max_tokens] if config.system_prompts.dynamic else []
    settings["system_prompts"] |= {"endpoint": answers, "cache": "", "dry_run": False}
    digest = hashlib.sha256(json.dumps([CONTENTS, settings, tokenizer.sha256], sort_keys=True).encode())
    for origin in itertools.chain(*origins.values()):
        digest.update(f"{origin.corpus.name} {origin.kind} {origin.fingerprint}".encode())
        for path in origin.files:
            with path.open("rb") as file:
                digest.update(shown_path(path, origin.root).encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _finished_report(out: Path) -> dict[str, Any]:
    """The report of finished prepared data in `out`, empty where there is nothing yet.

    Raises:
        UserError: `out` holds something else, which must not be deleted.
    """
    try:
        return read_report(out)
    except (OSError, ValueError) as error:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return {}
        raise UserError(f"{out} exists but holds no prepared data; give another folder or delete it") from error
