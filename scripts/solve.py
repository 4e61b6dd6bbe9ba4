"""Solves questions in several steps: answers, traces and what they cost.

Questions come from --config.questions (repeated for several), from --config.solver.input=FILE (one a line, or JSON, JSON lines,
csv, tsv or parquet, with options and known answers) or from standard input.
--config.solver=NAME is short for --config.solver.name=NAME.
"""

import re
import sys

from gemma_keras.stages.running.launch import launch

if __name__ == "__main__":
    sys.argv = [re.sub(r"^--?config\.solver(?==|$)", "--config.solver.name", word) for word in sys.argv]
    launch("solve", default_config="configs/solve.py")
