#!/bin/sh
# What a GPU decides, in one command on a machine with a GPU, CUDA's libraries, PyTorch and no Rust:
#   bench/gpu.sh DIRECTORY [options of bench/gpu.py]
# DIRECTORY is what bench/gpu-pack.sh made where Rust is. Nothing is fetched.
set -eu
cd "$(dirname "$0")/.."
directory=${1:?which directory did bench/gpu-pack.sh make?}
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
xz --decompress --stdout "$directory/programs.tar.xz" | tar --extract --directory "$work"
# Beside what this python3 has: an environment of its own would not see PyTorch where that is in one, too.
python3 -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --target "$work/site" \
    --find-links "$directory/wheels" --requirement bench/gpu-requirements.txt
BENCH_COMMIT=$(cat "$directory/commit")
PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
# CUDA's libraries may be nowhere but among PyTorch's packages.
packaged=$(python3 -c 'import glob, nvidia
print(":".join(library for directory in nvidia.__path__ for library in sorted(glob.glob(f"{directory}/*/lib"))))' || true)
LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$packaged"
export BENCH_COMMIT PYTHONPATH LD_LIBRARY_PATH PYTHONDONTWRITEBYTECODE=1
python3 bench/gpu.py --engine "$work/engine" --edit "$work/edit" "$@"
