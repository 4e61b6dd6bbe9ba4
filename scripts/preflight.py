"""Compiles a train step, or a step of decoding, for a TPU that need not be there; says whether it fits and what it costs.

--topology=SLICE     generation and chips: v5e:2x4 (default), v3:2x2, v4:2x2x1, v6e:2x4, v5p:2x2x1, ...
--utilisation=SHARE  share of the matmul peak that hours are estimated with (default: 0.5)
--program=NAME       train, decode, or auto (default): train where the configuration has corpora
"""

import sys
from pathlib import Path

from absl import flags as absl_flags

from gemma_keras import runtime
from gemma_keras.config import flags
from gemma_keras.config.errors import UserError
from gemma_keras.config.stages import PreflightConfig
from gemma_keras.preflight.topologies import prepare_environment
from gemma_keras.stages.running.launch import NAMES

DEFAULTS = {"topology": "v5e:2x4", "utilisation": "0.5", "program": "auto"}
options = dict(DEFAULTS)


def take_options(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """The flags of this script alone, as text, and the rest of the command line."""
    values = absl_flags.FlagValues()
    for name, default in DEFAULTS.items():
        absl_flags.DEFINE_string(name, default, name, flag_values=values)
    rest = values(argv, known_only=True)
    return {name: values[name].value for name in DEFAULTS}, rest


def main(config: PreflightConfig, workdir: Path) -> None:
    try:
        utilisation = float(options["utilisation"])
    except ValueError as error:
        raise UserError(f"--utilisation={options['utilisation']} is no number: give one such as 0.5") from error
    prepare_environment()
    runtime.configure(workdir)
    from gemma_keras.preflight import run  # after the settings above, and not at all for --help

    run.run(config, options["topology"], workdir, utilisation, options["program"])


if __name__ == "__main__":
    try:
        options, sys.argv = take_options(sys.argv)
    except absl_flags.Error as mistake:
        sys.exit(f"{mistake}; --help lists the flags")
    flags.run(main, default_config="configs/stage1.py", kind=PreflightConfig, names=NAMES)
