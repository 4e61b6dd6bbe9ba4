#!/usr/bin/env bash
# Checks the whole repository: ruff, mypy, pytest (without the tests marked long). Arguments go to pytest, e.g.
#   bash scripts/test.sh tests/config          one folder
#   bash scripts/test.sh -m ""                 every test, the long ones too
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
prepare_environment test
.venv/bin/python -m ruff check .
.venv/bin/python -m mypy
# Most of the time goes into compiling on one core; a file stays with one worker, which sets up its fixtures once.
exec .venv/bin/python -m pytest -q -m "not long" --numprocesses=2 --dist=loadfile "$@"
