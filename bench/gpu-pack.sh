#!/bin/sh
# Makes what bench/gpu.sh takes along: bench/gpu-pack.sh FOLDER [COMPUTE_CAPABILITY]; 90 (H100, H200) without it. Needs Rust and nvcc.
set -eu
cd "$(dirname "$0")/.."
folder=${1:?which folder is it to be in?}
export CUDA_COMPUTE_CAP="${2:-90}"
mkdir -p "$folder"
binary=$(cargo bench --locked --features cuda --bench engine --no-run --message-format json |
    python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "engine":
        print(message["executable"])')
xz --threads=0 --stdout "$binary" > "$folder/engine.xz"
ls -l "$folder/engine.xz"
