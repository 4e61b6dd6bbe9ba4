"""Training as a stage: pretraining of every weight, or fine-tuning of a base model, mostly by an adapter."""

import time
from pathlib import Path

from gemma_keras.config.errors import require
from gemma_keras.config.serialization import to_dict
from gemma_keras.config.stages import PretrainConfig, TrainingConfig
from gemma_keras.data.progress import print_progress
from gemma_keras.stages.running import processes
from gemma_keras.stages.running import workdir as files
from gemma_keras.stages.running.finishing import finish
from gemma_keras.stages.running.training_run import TrainingRun


@processes.telling_of_lost_ones()
def run(config: TrainingConfig, workdir: Path) -> dict:
    """Prepares data, trains, evaluates and exports; the same command again goes on where it stopped.

    The model lies in `<workdir>/export` then, merged with its adapter, which lies in `<workdir>/adapter`, too. Several processes
    run this together, on a workdir that all of them see; the first one writes. Returns what `<workdir>/result.json` holds.

    Raises:
        UserError: the configuration does not fit the data, the weights, the devices or the workdir; or the loss was not
            finite.
        SystemExit: a signal asked the run to stop; a checkpoint of the last step was written.
    """
    require(
        config.train.loss == "supervised",
        "config.train.loss=preference was given, but no stage trains on pairs yet, only scripts.preflight takes it; use "
        "supervised.",
    )
    if isinstance(config, PretrainConfig):
        require(
            config.adapter.method == "none",
            f"config.adapter.method={config.adapter.method!r} was given, but pretraining trains all weights: expected 'none'; "
            "use train_sft for adapters.",
        )
    else:
        require(
            bool(config.model.weights),
            "config.model.weights is empty, but fine-tuning needs a base model; give a Hugging Face folder, a Keras preset "
            "folder, a GGUF file, or the export folder of an earlier stage.",
        )
    started = time.perf_counter()
    processes.join(config.parallel)
    processes.by_writer(lambda: files.begin(workdir, to_dict(config)))
    finished = files.read_json(workdir / "result.json")
    if finished:
        print_progress(f"{workdir} is finished; give another --workdir to run it anew")
        return finished
    training = TrainingRun(config, workdir)
    training.prepare()
    training.compile()
    state = training.fit()
    result = finish(training, state)
    result["seconds"] = time.perf_counter() - started
    processes.by_writer(lambda: files.write_json(workdir / "result.json", result))
    return result
