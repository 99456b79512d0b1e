#!/bin/sh
# What a GPU decides, in one command on a machine with a GPU, CUDA's libraries, PyTorch and no Rust:
#   bench/gpu.sh FOLDER [options of bench/gpu.py]
# FOLDER is what bench/gpu-pack.sh made where Rust is. Nothing is fetched.
set -eu
cd "$(dirname "$0")/.."
folder=${1:?which folder did bench/gpu-pack.sh make?}
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
xz --decompress --stdout "$folder/programs.tar.xz" | tar --extract --directory "$work"
# Beside what this python3 has: an environment of its own would not see PyTorch where that is in one, too.
python3 -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --target "$work/site" \
    --find-links "$folder/wheels" --requirement bench/gpu-requirements.txt
BENCH_COMMIT=$(cat "$folder/commit")
PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
export BENCH_COMMIT PYTHONPATH PYTHONDONTWRITEBYTECODE=1
python3 bench/gpu.py --engine "$work/engine" --edit "$work/edit" "$@"
