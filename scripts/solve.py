"""Solves questions in several steps: answers, traces and what they cost.

Questions come from --config.questions (repeated for several), from --config.solver.input=FILE (one a line, or JSON, JSON lines,
csv, tsv or parquet, with options and known answers) or from standard input.
--config.solver=NAME is short for --config.solver.name=NAME.
"""

import re
import sys
from pathlib import Path

from gemma_keras import runtime
from gemma_keras.config import flags
from gemma_keras.config.schema import Config


def main(config: Config, workdir: Path) -> None:
    runtime.configure(workdir)
    from gemma_keras.stages import solve  # after the settings above, and not at all for --help

    solve.run(config, workdir)


if __name__ == "__main__":
    sys.argv = [re.sub(r"^--?config\.solver(?==|$)", "--config.solver.name", word) for word in sys.argv]
    flags.run(main, default_config="configs/solve.py", kind=Config)
