#!/usr/bin/env bash
# The program on the simulated device, from its demo to a device that fails: tests/cuda/program.sh ATELIER DEVICE
set -euo pipefail
atelier=$1
export LD_LIBRARY_PATH=$2/lib
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() { echo "$*" >&2; exit 1; }
# Runs the demo on a device with these settings; its output is in $work/said, its status in $status.
demo() {
    status=0
    rm -rf "$work/out"
    env "$@" "$atelier" demo --out "$work/out" > "$work/said" 2>&1 || status=$?
}

echo 'four jobs: plain, with a LoRA, a batch of four, a try-on in 8 bits'
demo SIMCUDA_STATS="$work/stats"
[ $status -eq 0 ] || { tail -20 "$work/said"; fail 'the demo ended with an error'; }
grep -q '8 images and contact-sheet.png' "$work/said" || fail 'not all images are there'
! grep -q '8-bit products are not used' "$work/said" || fail 'the try-on was not in 8 bits'
for kernel in attend_ group_norm_ round_tokens_ finish_; do
    grep -q "kernel $kernel" "$work/stats" || fail "no kernel $kernel ran"
done

echo 'no device'
demo SIMCUDA_DEVICES=0
[ $status -ne 0 ] && grep -q 'CUDA_ERROR_NO_DEVICE' "$work/said" || { tail -5 "$work/said"; fail 'a machine without a device'; }

echo 'a device that is older than the kernels, and a driver that is'
demo SIMCUDA_CAP=75
[ $status -ne 0 ] || fail 'kernels for 8.0 on a device of 7.5'
demo SIMCUDA_DRIVER=12080
[ $status -ne 0 ] && grep -q 'UNSUPPORTED_PTX_VERSION' "$work/said" || { tail -5 "$work/said"; fail 'a driver of CUDA 12.8'; }

echo 'a device without 8-bit products: weights are made whole'
demo SIMCUDA_CAP=80
[ $status -eq 0 ] || { tail -20 "$work/said"; fail 'the demo on 8.0'; }

echo 'too little memory'
for mib in 2 12 24; do
    demo SIMCUDA_MIB=$mib
    [ $status -lt 126 ] || { tail -5 "$work/said"; fail "a device of $mib MiB: status $status"; }
    [ $status -eq 0 ] || grep -qi 'out.of.memory' "$work/said" || { tail -5 "$work/said"; fail "a device of $mib MiB: no word of memory"; }
done

echo 'a device that breaks'
demo SIMCUDA_FAIL_AFTER=3000
[ $status -ne 0 ] && grep -q 'the device failed' "$work/said" || { tail -20 "$work/said"; fail 'a broken device'; }
