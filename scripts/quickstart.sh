#!/usr/bin/env bash
# Runs the whole flow on builtin data, from any folder and a bare clone. Flags are passed on, e.g.
#   bash scripts/quickstart.sh --config.data.root=DIR
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
prepare_environment verify
exec .venv/bin/python -m scripts.pipeline --config=configs/quickstart.py --workdir=runs/quickstart "$@"
