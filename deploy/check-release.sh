#!/bin/sh
# Builds the function as the image's CPU stage does, runs every sample event through it under AWS's Runtime Interface Emulator and
# `cargo lambda watch`, and prints how large it is and how soon it asks for its first event: check-release.sh [BINARY]. `cargo lambda` runs what
# cargo builds, whatever BINARY is.
set -eu
cd "$(dirname "$0")/.."
venv=${ATELIER_TEST_VENV:-target/test-venv}
tests/venv.sh "$venv"
[ $# -eq 0 ] || export ATELIER_BINARY="$1"
deploy/image/build.sh cpu target/image
exec "$venv/bin/python" deploy/check_release.py target/image "$venv"
