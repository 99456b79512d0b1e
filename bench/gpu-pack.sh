#!/bin/sh
# Makes all that a machine with a GPU is given, which needs neither Rust nor this repository:
#   bench/gpu-pack.sh DIRECTORY [cuda|flash-attn] [COMPUTE_CAPABILITY]
# Without them: cuda, 90 (H100, H200). Needs Rust and nvcc, and an hour for flash-attn the first time; PyPI for the wheels.
#
# DIRECTORY/gpu.sh runs it. Fails where all of it is more than 64 MiB.
set -eu
cd "$(dirname "$0")/.."
directory=${1:?which directory is it to be in?}
features=${2:-cuda}
export CUDA_COMPUTE_CAP="${3:-90}"
limit=$((64 << 20))
rm -rf "$directory"
mkdir -p "$directory/wheels"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The programs of one cargo command: each line a name and a path. Both sets are built with the release profile, whose dependencies they share.
programs() {
    cargo "$@" --locked --package atelier-engine --features "$features" --no-run --message-format json > "$work/messages"
    python3 - "$work/messages" <<'PYTHON'
import json, sys
for made in map(json.loads, open(sys.argv[1])):
    if made.get("executable"):
        print({"lib": "engine-units", "test": "engine-tests"}.get(made["target"]["kind"][0], made["target"]["name"]), made["executable"])
PYTHON
}

mkdir "$work/files"
programs bench --bench engine --bench edit > "$work/programs"
programs test --release --lib --test engine >> "$work/programs"
while read -r name program; do
    strip -o "$work/files/$name" "$program"
done < "$work/programs"
git ls-files -z bench tests/oracle tests/fixtures models ':!bench/results' ':!tests/fixtures/conformance' ':!tests/fixtures/image-files' ':!tests/fixtures/images' |
    xargs -0 cp --parents --target-directory "$work/files"
# Together in one file: most of one program is in the others, and the window reaches from one to the next.
tar --create --directory "$work/files" . | xz --lzma2=preset=9,dict=128MiB --stdout > "$directory/files.tar.xz"
# The tests know their files by the place at which they were built.
pwd > "$directory/root"
git describe --always --dirty > "$directory/commit"
cp bench/gpu.sh "$directory"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$directory/wheels" --requirement bench/gpu-requirements.txt
size=$(du --summarize --bytes "$directory" | cut -f1)
echo "$directory: $((size >> 20)) of $((limit >> 20)) MiB"
[ "$size" -le $limit ]
