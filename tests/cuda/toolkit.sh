#!/usr/bin/env bash
# Puts a CUDA 13.0 toolkit, cuDNN and CUTLASS' headers from PyPI's wheels into a directory, so that the features `cuda` and `flash-attn` build on a
# machine without CUDA and without a GPU (linking included; to run they need a GPU, or the simulated device beside this file).
#
#   tests/cuda/toolkit.sh [DIR]          fetches into DIR (~/.cache/atelier-cuda), once: 1.7 GB, under a minute
#   eval "$(tests/cuda/toolkit.sh --env [DIR])" && cargo build --release --features cuda
#
# CUDA_COMPUTE_CAP says for which GPUs (80: all from 8.0 on). `flash-attn` is 53 CUDA files of 1 to 2 minutes each, once.
set -euo pipefail

mode=fetch
[ "${1:-}" = --env ] && { mode=env; shift; }
dir=${1:-${ATELIER_CUDA_TOOLKIT:-$HOME/.cache/atelier-cuda}}
home=$dir/toolkit/nvidia/cu13

fetch() {
    [ -e "$dir/.done" ] && return
    rm -rf "$dir/toolkit"
    # One call: a second one with `--target` into the same directory skips the package `nvidia`, which all of them share.
    # A network that stops midway ends it: pip's limits are for a connection that is silent, timeout's for one that is slow.
    timeout 900 python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --timeout 30 --retries 2 \
        --target "$dir/toolkit" \
        nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-cccl==13.0.85 \
        nvidia-cuda-runtime==13.0.96 nvidia-curand==10.4.0.35 nvidia-cuda-nvrtc==13.0.88 nvidia-cublas==13.1.0.3 \
        nvidia-cudnn-cu13==9.19.0.56 nvidia-cutlass==3.5.0.0 ||
        { echo "pip could not bring the CUDA toolkit (status $?; 124: not within 15 minutes)" >&2; return 1; }
    cd "$home"
    # The wheels have libfoo.so.N alone; the linker asks for libfoo.so.
    ( cd lib; for f in lib*.so.*; do case $f in *.alt.*) continue ;; esac; ln -sf "$f" "${f%%.so.*}.so"; done )
    ln -sfn lib lib64
    for f in ../cudnn/lib/libcudnn*.so.*; do
        name=$(basename "$f")
        ln -sf "../$f" "lib/$name"
        ln -sf "$name" "lib/${name%%.so.*}.so"
    done
    # No wheel has the driver's stub: it is made of the names in cuda.h, to link against.
    mkdir -p lib/stubs
    { grep -ohE '\bcu[A-Z][A-Za-z0-9_]*' include/cuda.h include/cudaTypedefs.h 2>/dev/null || true; } |
        grep -vE '_t$|_st$|_enum$|_flags$|PFN' | sort -u | awk '{print "int " $1 "(void){return 999;}"}' > lib/stubs/stub.c
    gcc -shared -fPIC -w -fno-builtin -Wl,-soname,libcuda.so.1 -o lib/stubs/libcuda.so lib/stubs/stub.c
    # candle-flash-attn's build wants CUTLASS 3.5.0 in its own cache, at this commit; the wheel has those headers.
    commit=7d49e6c7e2f8896c47f586706e67e1fb215529dc
    cutlass=$dir/cudaforge/git/checkouts/cutlass-${commit:0:16}
    mkdir -p "$cutlass/tools/util" "$cutlass/.git/objects" "$cutlass/.git/refs"
    echo $commit > "$cutlass/.git/HEAD"
    ln -sfn "$dir/toolkit/cutlass_library/source/include" "$cutlass/include"
    ln -sfn "$dir/toolkit/cutlass_library/source/tools/util/include" "$cutlass/tools/util/include"
    touch "$dir/.done"
}

case $mode in
fetch)
    fetch
    echo "CUDA toolkit in $home"
    ;;
env)
    fetch >&2
    cat <<EOF
export CUDA_HOME=$home CUDA_PATH=$home CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-80} CUDAFORGE_HOME=$dir/cudaforge CUDAFORGE_THREADS=\${CUDAFORGE_THREADS:-2}
export PATH=$home/bin:\$PATH LIBRARY_PATH=$home/lib:$home/lib/stubs\${LIBRARY_PATH:+:\$LIBRARY_PATH}
EOF
    ;;
esac
