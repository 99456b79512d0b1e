#!/bin/sh
# Builds the program and prints its path: program.sh cpu|cuda. ATELIER_BINARY names one that is built already.
set -eu
flavour=${1:?usage: program.sh cpu|cuda}
cd "$(dirname "$0")/.."
case $flavour in
    cpu) features= ;;
    # One architecture a build: 80 is for all GPUs of 8.x (A100, A10G, L4), 90 for Hopper (H100, H200).
    cuda) features=flash-attn; export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-80}" ;;
    *) echo "program.sh: no such flavour: $flavour; cpu or cuda" >&2; exit 2 ;;
esac
if [ -z "${ATELIER_BINARY:-}" ]; then
    cargo build --release --locked --bin atelier ${features:+--features "$features"} >&2
    ATELIER_BINARY=${CARGO_TARGET_DIR:-target}/release/atelier
fi
echo "$ATELIER_BINARY"
