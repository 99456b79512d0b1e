#!/bin/sh
# Makes the Python venv that some tests need: tests/venv.sh DIR, then ATELIER_TEST_VENV=DIR cargo test
set -eu
venv=${1:?usage: tests/venv.sh DIR}
requirements=$(dirname "$0")/requirements.txt
# Holds AWS's Runtime Interface Emulator, one static binary; the Python packages around it are not needed.
rie=aws-sam-cli==1.170.0
# Asks for PyTorch, which only a method of it needs that no test uses.
mark=invisible-watermark==0.2.0
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
if ! { cat "$requirements"; echo "$rie" "$mark"; } | cmp -s - "$venv/installed.txt"; then
    pip_install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
    pip_install --requirement "$requirements"
    pip_install --no-deps "$rie" "$mark"
    install "$venv"/lib/python3*/site-packages/samcli/local/rapid/aws-lambda-rie-x86_64 "$venv/bin/aws-lambda-rie"
    { cat "$requirements"; echo "$rie" "$mark"; } > "$venv/installed.txt"
fi
