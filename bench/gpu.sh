#!/bin/sh
# What a GPU decides, on a machine with a GPU, CUDA's libraries, PyTorch and no Rust, out of the directory that bench/gpu-pack.sh made:
#   DIRECTORY/gpu.sh tests [options of the test programs]    the engine's tests
#   DIRECTORY/gpu.sh bench [options of bench/gpu.py]         against diffusers; DIRECTORY/results gets what it writes
# Nothing is fetched.
set -eu
directory=$(cd "$(dirname "$0")" && pwd)
part=${1:?tests or bench?}
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
xz --decompress --stdout "$directory/files.tar.xz" | tar --extract --directory "$work"
# CUDA's libraries may be nowhere but among PyTorch's packages.
packaged=$(python3 -c 'import glob, nvidia
print(":".join(library for directory in nvidia.__path__ for library in sorted(glob.glob(f"{directory}/*/lib"))))' || true)
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$packaged" PYTHONDONTWRITEBYTECODE=1
case $part in
tests)
    root=$(cat "$directory/root")
    mkdir -p "$(dirname "$root")"
    # Fails where that place is taken: the tests must not read other files than their own.
    ln -s -T "$work" "$root"
    trap 'rm -f "$root"; rm -rf "$work"' EXIT
    mkdir -p "$work/crates/engine"
    cd "$work/crates/engine"
    # f32 is to be f32, whatever NVIDIA's libraries would choose.
    export ATELIER_TEST_DEVICE=gpu NVIDIA_TF32_OVERRIDE=0
    status=0
    for program in engine-units engine-tests; do
        "$work/$program" "$@" || status=$?
    done
    exit $status
    ;;
bench)
    cd "$work"
    # Beside what this python3 has: an environment of its own would not see PyTorch where that is in one, too.
    python3 -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --target "$work/site" \
        --find-links "$directory/wheels" --requirement bench/gpu-requirements.txt
    BENCH_COMMIT=$(cat "$directory/commit")
    export BENCH_COMMIT PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
    mkdir -p "$directory/results"
    status=0
    python3 bench/gpu.py --engine "$work/engine" --edit "$work/edit" "$@" || status=$?
    find bench/results -name 'gpu-*-cuda.json' -exec cp {} "$directory/results" \;
    exit $status
    ;;
*)
    echo "tests or bench, not $part" >&2
    exit 2
    ;;
esac
