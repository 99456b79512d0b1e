#!/bin/sh
# Makes the Python venv that some tests need: tests/venv.sh DIR, then ATELIER_TEST_VENV=DIR cargo test
set -eu
venv=${1:?usage: tests/venv.sh DIR}
requirements=$(dirname "$0")/requirements.txt
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
if ! cmp -s "$requirements" "$venv/requirements.txt"; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$requirements"
    cp "$requirements" "$venv/requirements.txt"
fi
