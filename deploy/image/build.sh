#!/bin/sh
# The build stage's command: build.sh cpu|cuda DESTINATION puts the binary and what it reads beside it there. Runs in the image, and here.
set -eu
flavour=${1:?usage: build.sh cpu|cuda DESTINATION}
to=${2:?usage: build.sh cpu|cuda DESTINATION}
cd "$(dirname "$0")/../.."

case $flavour in
    cpu) features= ;;
    # One architecture a build: 80 is for all GPUs of 8.x (A100, A10G, L4, L40S), 90 for Hopper (H100, H200).
    cuda) features=flash-attn; export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-80}" ;;
    *) echo "build.sh: no such flavour: $flavour; cpu or cuda" >&2; exit 2 ;;
esac
# ATELIER_BINARY: one that is built already; the tests have one.
binary=${ATELIER_BINARY:-}
if [ -z "$binary" ]; then
    cargo build --release --locked --bin atelier ${features:+--features "$features"}
    binary=${CARGO_TARGET_DIR:-target}/release/atelier
fi
mkdir -p "$to/bin" "$to/srv/models" "$to/state"
install -m 755 "$binary" "$to/bin/atelier"
cp models/*.yaml "$to/srv/models/"
cp -R models/tiny-sd models/tiny-edit models/tiny-checker "$to/srv/models/"
if [ "$flavour" = cuda ]; then deploy/image/libraries.sh "$to"; fi
