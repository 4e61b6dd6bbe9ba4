"""How a script starts its stage, and the names that its fields may have.

Nothing here imports jax before a stage begins, so that `--help` and mistakes are told at once.
"""

import importlib
from pathlib import Path
from typing import Any, NoReturn

from gemma_keras import runtime
from gemma_keras.config import flags
from gemma_keras.config.fields import Names
from gemma_keras.config.sections import AdapterConfig, DataConfig, ModelConfig, SolverConfig
from gemma_keras.config.stages import STAGES, StageConfig
from gemma_keras.models.families.registry import ARCHITECTURES
from gemma_keras.models.weight_table import PROJECTIONS
from gemma_keras.solvers.registry import NAMES as SOLVERS
from gemma_keras.solvers.registry import SINGLE
from gemma_keras.text.templates import AUTO, TEMPLATES

NAMES: Names = {
    (ModelConfig, "architecture"): tuple(ARCHITECTURES),
    (AdapterConfig, "targets"): tuple(projection.name for projection in PROJECTIONS),
    (DataConfig, "template"): (AUTO, *TEMPLATES),
    (SolverConfig, "name"): SOLVERS,
    (SolverConfig, "sampled"): tuple(SINGLE),
    (SolverConfig, "pipeline"): tuple(SINGLE),
}


def launch(script: str, stage: str = "", *, default_config: str) -> NoReturn:
    """Runs `gemma_keras.stages.<stage>` (as the script, if not named) as the command line says, and exits."""

    def main(config: StageConfig, workdir: Path) -> Any:
        runtime.configure(workdir)
        return importlib.import_module(f"gemma_keras.stages.{stage or script}").run(config, workdir)

    flags.run(main, default_config=default_config, kind=STAGES[script], names=NAMES)
