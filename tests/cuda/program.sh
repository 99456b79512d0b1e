#!/usr/bin/env bash
# The program on the simulated device, from its demo to a device that fails: tests/cuda/program.sh ATELIER DEVICE ENGINE_TESTS
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
atelier=$1 device=$2 engine_tests=$3
export LD_LIBRARY_PATH=$device/lib
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() { echo "$*" >&2; exit 1; }
# Runs the demo on a device with these settings; its output is in $work/said, its status in $status.
demo() {
    status=0
    rm -rf "$work/out"
    env "$@" "$atelier" demo --out "$work/out" > "$work/said" 2>&1 || status=$?
}
failed() { tail -20 "$work/said"; fail "$*"; }

echo 'four jobs: plain, with a LoRA, a batch of four, a try-on in 8 bits'
demo SIMCUDA_STATS="$work/stats"
[ $status -eq 0 ] || failed 'the demo ended with an error'
grep -q '10 images and contact-sheet.png' "$work/said" || failed 'not all images are there'
! grep -q '8-bit products are not used' "$work/said" || failed 'the try-on was not in 8 bits'
for kernel in add_gated_ add_gated_modulate_ attend_ geglu_ group_norm_ modulate_ norm_rope_ round_tokens_ finish_; do
    grep -q "kernel $kernel" "$work/stats" || fail "no kernel $kernel ran"
done
! grep -q 'bank conflict' "$work/stats" || fail 'a kernel reads matrices from shared memory with bank conflicts'
for call in cublasLtMatmul cudnnConvolutionBiasActivationForward cudnnSetConvolutionMathType; do
    grep -q "\"$call\"" "$work/stats" || fail "$call was not called"
done

echo 'steps are graphs, and with a driver that has none there is one warning for each of the two models'
grep -q '"cuGraphLaunch"' "$work/stats" || fail 'no step was a graph'
rm "$work/stats"
demo SIMCUDA_GRAPHS=0 SIMCUDA_MODE=dry SIMCUDA_STATS="$work/stats"
[ $status -eq 0 ] && ! grep -q '"cuGraphLaunch"' "$work/stats" || failed 'the demo without graphs'
[ "$(grep -c 'no CUDA graph of this step' "$work/said")" -eq 2 ] || failed 'not one warning a model'

echo 'libraries of NVIDIA that add nothing to products and convolutions, nothing computed: a kernel does'
rm "$work/stats"
for epilogues in 0 late; do
    demo SIMCUDA_EPILOGUES=$epilogues SIMCUDA_MODE=dry SIMCUDA_STATS="$work/stats"
    [ $status -eq 0 ] && grep -q 'kernel add_bias_' "$work/stats" || failed "the demo with SIMCUDA_EPILOGUES=$epilogues"
    rm "$work/stats"
done

echo 'no device'
demo SIMCUDA_DEVICES=0
[ $status -ne 0 ] && grep -q 'CUDA_ERROR_NO_DEVICE' "$work/said" || failed 'a machine without a device'

echo 'a device that is older than the kernels, and a driver that is'
demo SIMCUDA_CAP=75
[ $status -ne 0 ] && grep -qi 'NO_BINARY_FOR_GPU\|no kernel image' "$work/said" || failed 'kernels for 8.0 on a device of 7.5'
demo SIMCUDA_DRIVER=12080
[ $status -ne 0 ] && grep -q 'UNSUPPORTED_PTX_VERSION' "$work/said" || failed 'a driver of CUDA 12.8'

echo 'a device without 8-bit products: weights are made whole'
demo SIMCUDA_CAP=80 SIMCUDA_STATS="$work/stats"
[ $status -eq 0 ] && grep -q '10 images and contact-sheet.png' "$work/said" || failed 'the demo on 8.0'
grep -q 'kernel gated_gelu_f' "$work/stats" || fail 'layers with gates are no one product on 8.0'
! grep -q 'bank conflict' "$work/stats" || fail 'a kernel reads matrices from shared memory with bank conflicts on 8.0'

echo 'newer devices, nothing computed: no clothes are found to mask, so the fifth job has no images'
for cap in 86 89 100 120; do
    demo SIMCUDA_CAP=$cap SIMCUDA_MODE=dry
    [ $status -eq 0 ] && grep -q '^8 images and contact-sheet.png' "$work/said" || failed "the demo on $cap"
done

echo 'too little memory for the demo, nothing computed'
for mib in 2 12 24 40 200; do
    demo SIMCUDA_MIB=$mib SIMCUDA_MODE=dry
    [ $status -lt 126 ] || failed "a device of $mib MiB: status $status"
    [ $status -eq 0 ] || grep -qi 'out.of.memory' "$work/said" || failed "a device of $mib MiB: no word of memory"
done

echo "too little memory for Stable Diffusion 1.5's shapes at 512x512, nothing computed"
python3 "$here/../../bench/sd15_shapes.py" "$work/sd15"
for mib in 40 400 1500 2100 2300 2600 3000 4000 6000; do
    status=0
    SIMCUDA_MODE=dry SIMCUDA_MIB=$mib SIMCUDA_STATS=$work/$mib ATELIER_TEST_DEVICE=gpu ATELIER_TEST_MODEL=$work/sd15 ATELIER_TEST_SIDE_PX=512 \
        "$engine_tests" --exact world::counted_steps > "$work/said" 2>&1 || status=$?
    peak=$(sed -n 's/.*"peak_bytes":\([0-9]*\).*/\1/p' "$work/$mib")
    said=generated
    [ $status -eq 0 ] || said=refused
    echo "  $mib MiB: $said, $((peak >> 20)) MiB at most"
    [ $((peak >> 20)) -le $mib ] || fail "a device of $mib MiB gave more than it has"
    [ $status -eq 0 ] || grep -qi 'out.\?of.\?memory' "$work/said" || failed "a device of $mib MiB: no word of memory"
    ! grep -q 'signal' "$work/said" || failed "a device of $mib MiB"
done
[ $status -eq 0 ] || failed '6,000 MiB are enough'

echo 'a device that breaks while the second job runs'
demo SIMCUDA_FAIL_AFTER=1200 SIMCUDA_MODE=dry
[ $status -ne 0 ] && grep -q 'the GPU failed' "$work/said" || failed 'a broken device'
python3 "$here/fatal.py" "$atelier" "$device"
