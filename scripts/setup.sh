# Sourced by quickstart.sh, test.sh and peers.sh: `prepare_environment EXTRAS` leaves a ready .venv in the repository root and the
# shell in that root. PYTHON names the interpreter for a new .venv (default: python3).

fail() {
  echo "error: $*" >&2
  exit 1
}

# Ends the script with one sentence unless the interpreter's version is one that we support.
check_version() {
  local found
  found="$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" ||
    fail "$1 does not run, but Python 3.11 to 3.13 is needed: install one and set PYTHON to it, e.g. PYTHON=python3.12"
  case "$found" in
    3.11 | 3.12 | 3.13) ;;
    *) fail "$1 is Python $found, but 3.11 to 3.13 is needed: set PYTHON to such an interpreter, e.g. PYTHON=python3.12" ;;
  esac
}

# What an installation depends on: the requirements, the extras and where the repository lies.
fingerprint() {
  .venv/bin/python - "$1" <<'PY'
import hashlib, os, sys
digest = hashlib.sha256(f"{sys.argv[1]}|{os.getcwd()}|{sys.version}".encode())
for name in ("setup.cfg", "pyproject.toml"):
    digest.update(open(name, "rb").read())
print(digest.hexdigest())
PY
}

stamp_is_current() {
  [ -f ".venv/installed_$1" ] && [ "$(cat ".venv/installed_$1")" = "$(fingerprint "$1")" ]
}

# prepare_environment EXTRAS: EXTRAS is "" or a name such as "test". Installs nothing that an earlier call installed.
prepare_environment() {
  local extras="$1"
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  if [ ! -x .venv/bin/python ]; then
    check_version "${PYTHON:-python3}"
    echo "creating .venv with ${PYTHON:-python3}"
    "${PYTHON:-python3}" -m venv .venv ||
      fail "${PYTHON:-python3} cannot create a virtual environment: install its venv package (Debian: python3-venv)"
  fi
  check_version .venv/bin/python
  if stamp_is_current "$extras"; then
    return
  fi
  .venv/bin/python -m pip --version >/dev/null 2>&1 ||
    fail ".venv has no pip, as after an interrupted set-up: delete .venv and run this script again"
  echo "installing gemma_keras${extras:+[$extras]} into .venv (once; some minutes)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${extras:+[$extras]}" ||
    fail "pip could not install gemma_keras${extras:+[$extras]}: read its messages above, mend the cause and run this script again"
  fingerprint "" >.venv/installed_
  fingerprint "$extras" >".venv/installed_$extras"
}
