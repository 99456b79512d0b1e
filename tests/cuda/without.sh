#!/usr/bin/env bash
# A build for GPUs starts where none of NVIDIA's libraries is, and says what is missing once a GPU is needed: tests/cuda/without.sh ATELIER
set -euo pipefail
atelier=$1
needed=$(readelf -d "$atelier" | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p')
if echo "$needed" | grep -E '^lib(cuda|cudart|cublas|cublasLt|cudnn|curand|nvrtc|nvidia)'; then
    echo "the dynamic linker needs these libraries: a function of theirs is missing in crates/kernels/src/cuda/libraries.rs" >&2
    exit 1
fi
if strings -a "$atelier" | grep -E 'SIMCUDA|imulated device'; then
    echo "the program has traces of the simulated device" >&2
    exit 1
fi
alone() { env -i PATH=/usr/bin:/bin HOME="$HOME" "$atelier" "$@"; }
alone --version
alone host --help > /dev/null
status=0
said=$(alone doctor 2>&1) || status=$?
[ "$status" -ne 127 ] || { echo "doctor does not start: $said" >&2; exit 1; }
echo "$said" | grep -q 'NVML' || { echo "doctor says nothing of the missing driver: $said" >&2; exit 1; }
echo "started without NVIDIA's libraries"
