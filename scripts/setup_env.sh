# Sourced by the other scripts: makes .venv from requirements.txt once, reuses it afterwards.
# Sets PYTHON to its interpreter and changes to the root of the repository.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# .venv is installed uncompiled: were nothing cached, every start would compile torch and the others again.
unset PYTHONDONTWRITEBYTECODE

_find_python() {
    local candidate
    for candidate in "${PYTHON3:-python3}" python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: Python 3.11 or newer is needed; install it or set PYTHON3=/path/to/python" >&2
    return 1
}

_setup_env() {
    local stamp=.venv/requirements.installed base
    if [ -x .venv/bin/python ] && cmp -s requirements.txt "$stamp"; then
        return
    fi
    base=$(_find_python) || return 1
    echo "Installing the pinned requirements into .venv (once; some minutes)"
    [ -x .venv/bin/python ] || "$base" -m venv .venv || return 1
    # Uncompiled: Python compiles what is imported when it is, a fraction of these packages.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt || return 1
    cp requirements.txt "$stamp"
}

_setup_env || exit 1
PYTHON=$PWD/.venv/bin/python
