#!/bin/sh
# Makes .venv: a fitting interpreter, the locked dependencies by hash, this repository as an editable install.
# Idempotent: does nothing while .venv is newer than the lock file and pyproject.toml.
set -eu
cd "$(dirname "$0")/.."
VENV=.venv
STAMP=$VENV/.setup-done
export UV_SYSTEM_CERTS=1 # trust what the machine trusts: many networks have a certificate authority of their own
if [ -e "$STAMP" ] && [ "$STAMP" -nt requirements.lock ] && [ "$STAMP" -nt pyproject.toml ]; then
    exit 0
fi

fits() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not ((3, 10) <= sys.version_info[:2] <= (3, 12)))' 2>/dev/null; }
find_python() {
    for name in ${PYTHON:-} python3.12 python3.11 python3.10 python3 python; do
        if command -v "$name" >/dev/null 2>&1 && fits "$name"; then
            command -v "$name"
            return
        fi
    done
}
locked_uv() { awk '/^uv==/{p=1} p{print} p&&!/\\$/{exit}' requirements.lock; }

PY=$(find_python)
if [ -n "$PY" ]; then
    echo "setup: using $("$PY" --version) at $PY"
    [ -x "$VENV/bin/python" ] || "$PY" -m venv "$VENV"
    locked_uv >"$VENV/uv.txt"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$VENV/uv.txt" 2>"$VENV/pip.log" ||
        { cat "$VENV/pip.log" >&2; exit 1; }
    UV=$VENV/bin/uv
else
    UV=$(command -v uv || true)
    [ -n "$UV" ] && "$UV" venv --quiet --python 3.12 --seed "$VENV" || {
        echo "setup: no Python 3.10, 3.11 or 3.12 with venv was found (looked for python3.12, python3.11, python3.10, python3) and uv could not bring one; install one, on Debian or Ubuntu: apt install python3 python3-venv" >&2
        exit 1
    }
fi
echo "setup: installing the locked dependencies (MindSpore alone is 0.8 GB; a few minutes the first time)"
"$UV" pip install --quiet --compile-bytecode --python "$VENV/bin/python" --require-hashes -r requirements.lock
"$UV" pip install --quiet --python "$VENV/bin/python" --no-deps --no-build-isolation --editable .
echo "setup: building the kernels"
"$VENV/bin/python" -m rexnet.kernels.build >/dev/null ||
    echo "setup: without a C++ compiler MindSpore's own operators serve, and training on CPU takes several times as long" >&2
touch "$STAMP"
echo "setup: done; . .venv/bin/activate puts rexctl on your PATH"
