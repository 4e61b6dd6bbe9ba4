#!/usr/bin/env bash
# Compares what we write with what other programs make of it: installs the extra `peers` (pip compiles llama.cpp for it, some
# ten minutes on 2 cores) and runs the tests marked peers. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
prepare_environment test,peers

# llama.cpp's converter is in the source distribution of llama-cpp-python only.
version="$(.venv/bin/python -c 'from importlib.metadata import version; print(version("llama-cpp-python"))')"
converter=".venv/share/llama.cpp-$version"
if [ ! -d "$converter" ]; then
  sources="$(mktemp -d)"
  trap 'rm -rf "$sources"' EXIT
  .venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
    --dest "$sources" "llama-cpp-python==$version" || fail "pip could not download the sources of llama-cpp-python $version"
  tar -xzf "$sources"/llama_cpp_python-*.tar.gz -C "$sources"
  mkdir -p "$converter.partial"
  cp -r "$sources"/llama_cpp_python-*/vendor/llama.cpp/{convert_hf_to_gguf.py,conversion,gguf-py} "$converter.partial"
  mv "$converter.partial" "$converter"
fi
.venv/bin/python -m pytest -q -m peers tests/peers "$@"
