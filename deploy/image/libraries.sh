#!/bin/sh
# Copies the CUDA libraries that the binary loads, and what those load, into DESTINATION/lib: libraries.sh DESTINATION. The driver's own
# (libcuda, libnvidia-ml) come from the machine that runs the image.
set -eu
to=${1:?usage: libraries.sh DESTINATION}
search=${CUDA_LIBRARIES:-/usr/local/cuda/lib64:/usr/lib/x86_64-linux-gnu}
mkdir -p "$to/lib"

# cudarc opens these by name; the linker names cuDNN's parts only when they are opened.
LD_LIBRARY_PATH=$search ldd "$to/bin/atelier" | sed -n 's/.*=> \(.*\) (.*/\1/p' > "$to/lib/list"
IFS=:
for directory in $search; do
    ls "$directory"/libcudart.so.* "$directory"/libcublas.so.* "$directory"/libcublasLt.so.* "$directory"/libcurand.so.* \
        "$directory"/libnvrtc.so.* "$directory"/libnvrtc-builtins.so.* "$directory"/libcudnn*.so.* 2>/dev/null >> "$to/lib/list" || true
done
unset IFS
grep -E '/lib(cudart|cublas|cublasLt|curand|nvrtc|nvrtc-builtins|cudnn[a-z_]*)\.so\.' "$to/lib/list" | sort -u | while read -r library; do
    cp -L "$library" "$to/lib/"
done
rm "$to/lib/list"
