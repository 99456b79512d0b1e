#!/bin/sh
# Builds the simulated device's libraries: build.sh DIR. They lie in DIR/lib under NVIDIA's names, for LD_LIBRARY_PATH alone.
# CUDA_HOME: the toolkit, whose headers say what the libraries' functions are.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/lib"
out=$(cd "$1" && pwd)
cudnn=$CUDA_HOME/../cudnn/include
flags="-std=c++17 -O3 -march=native -g1 -shared -fPIC -Wall -I$CUDA_HOME/include -I$cudnn"
cp "$here/translate.py" "$here/ptx.h" "$out/"
cd "$here"
g++ $flags -Wl,-soname,libcuda.so.1 -o "$out/lib/libcuda.so.1" counts.cpp memory.cpp context.cpp streams.cpp modules.cpp blocks.cpp -ldl -lpthread
for library in cublas:13 cublasLt:13 cudnn:9 curand:10; do
    name=${library%%:*} version=${library##*:}
    # Programs that link against NVIDIA's ask for its symbol version.
    printf 'lib%s.so.%s { global: *; };\n' "$name" "$version" > "$out/$name.map"
    g++ $flags -Wl,--version-script="$out/$name.map" -Wl,-soname,"lib$name.so.$version" -o "$out/lib/lib$name.so.$version" \
        "$(echo "$name" | tr A-Z a-z).cpp" "$out/lib/libcuda.so.1"
done
gcc -shared -fPIC -O2 -Wall -Wl,-soname,libnvidia-ml.so.1 -o "$out/lib/libnvidia-ml.so.1" nvml.c
for library in libcudart.so.13 libnvrtc.so.13 libnvrtc-builtins.so.13.0; do ln -sf "$CUDA_HOME/lib/$library" "$out/lib/$library"; done
