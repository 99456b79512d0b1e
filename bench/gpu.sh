#!/bin/sh
# What a GPU decides, in one command on a machine with a GPU, CUDA's libraries, PyTorch and no Rust:
#   bench/gpu.sh FOLDER [options of bench/gpu.py]
# FOLDER, relative to the repository, holds `engine.xz` (bench/gpu-pack.sh makes it where Rust is) and, where the machine reaches no
# package index, `wheels/`: diffusers, transformers, safetensors and what they need.
set -eu
cd "$(dirname "$0")/.."
folder=${1:?which folder has engine.xz and the wheels?}
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
xz --decompress --stdout "$folder/engine.xz" > "$work/engine"
chmod +x "$work/engine"
python3 -m venv --system-site-packages "$work/venv"
if [ -d "$folder/wheels" ]; then
    "$work/venv/bin/python" -m pip install --quiet --no-index --find-links "$folder/wheels" diffusers transformers safetensors
fi
"$work/venv/bin/python" bench/gpu.py --binary "$work/engine" "$@"
