#!/bin/sh
# Makes what bench/gpu.sh takes along beside the repository's own files, and fails where both together are more than 64 MiB:
#   bench/gpu-pack.sh DIRECTORY [cuda|flash-attn] [COMPUTE_CAPABILITY]
# Without them: cuda, 90 (H100, H200). Needs Rust and nvcc, and an hour for flash-attn the first time; PyPI for the wheels.
set -eu
cd "$(dirname "$0")/.."
directory=${1:?which directory is it to be in?}
features=${2:-cuda}
export CUDA_COMPUTE_CAP="${3:-90}"
limit=$((64 << 20))
rm -rf "$directory/wheels"
mkdir -p "$directory/wheels"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo bench --locked --features "$features" --bench engine --bench edit --no-run --message-format json > "$work/messages"
python3 - "$work/messages" > "$work/programs" <<'PYTHON'
import json, sys
for message in map(json.loads, open(sys.argv[1])):
    if message.get("executable") and message["target"]["name"] in ("engine", "edit"):
        print(message["target"]["name"], message["executable"])
PYTHON
while read -r name program; do
    strip -o "$work/$name" "$program"
done < "$work/programs"
# Together: most of one is in the other, and the window reaches from one to the other.
tar --create --directory "$work" engine edit | xz --lzma2=preset=9e,dict=128MiB --stdout > "$directory/programs.tar.xz"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$directory/wheels" --requirement bench/gpu-requirements.txt
git describe --always --dirty > "$directory/commit"
ours=$(du --summarize --bytes "$directory" | cut -f1)
tracked=$(git ls-files -z | xargs -0 du --bytes --total | tail -n 1 | cut -f1)
ls -l "$directory" "$directory/wheels"
echo "$ours bytes here and $tracked of the repository: $(((ours + tracked) >> 20)) of $((limit >> 20)) MiB"
[ $((ours + tracked)) -le "$limit" ]
