#!/usr/bin/env bash
# A Python environment with what decides about values, on the CPU: torch, diffusers, transformers, PEFT, spandrel. Two minutes and 1.7 GB, once.
#
#   tests/oracle/venv.sh DIR
#
# torch from PyPI asks for 3 GB of CUDA's libraries, which nothing here calls: empty stand-ins satisfy the linker in their place.
set -euo pipefail
venv=${1:?usage: tests/oracle/venv.sh DIR}
here=$(cd "$(dirname "$0")" && pwd)
[ -e "$venv/.done" ] && exit 0

python3 -m venv "$venv"
pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
pip --no-deps --requirement "$here/torch.txt"
pip --requirement "$here/requirements.txt"

packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
lib=$packages/torch/lib
# The one library whose functions are called while torch is imported.
runtime=$(for file in "$lib"/*.so; do objdump -p "$file"; done | grep -o 'libcudart\.so\.[0-9]*' | sort -u)
pip --no-deps "nvidia-cuda-runtime==${runtime##*.}.0.*"
cp "$(find "$packages/nvidia" -name "$runtime")" "$lib/"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
objects=("$lib"/*.so "$packages"/torch/_C*.so)
for object in "${objects[@]}"; do nm -D --undefined-only "$object" | awk '{ print $NF }'; done | sort -u > "$work/undefined"
for object in "${objects[@]}"; do objdump -p "$object"; done > "$work/headers"
stand_ins='cublas|cublasLt|cuda|cudnn|cufft|cufile|cupti|curand|cusolver|cusparse|cusparseLt|nccl|nvrtc|nvshmem_host|nvJitLink|nvToolsExt'
awk '/NEEDED/ { print $2 }' "$work/headers" | sort -u | grep -E "^lib($stand_ins)\.so" > "$work/wanted"
stub() { sed 's/.*/int &(void) { return 999; }/'; }
while read -r library; do
    name=${library%%.so*} name=${name#lib}
    : > "$work/stubs.c"
    : > "$work/versions"
    # Symbols with a version, by version.
    versions=$(awk -v library="$library:" '/required from/ { inside = ($3 == library); next } inside && NF == 4 && $1 ~ /^0x/ { print $4; next } { inside = 0 }' "$work/headers" | sort -u)
    for version in $versions; do
        { grep -E "@$version\$" "$work/undefined" || true; } | cut -d@ -f1 | stub >> "$work/stubs.c"
        echo "$version { global: *; };" >> "$work/versions"
    done
    # The others, by the prefix of their library.
    case $name in
        cuda) prefix='cu[A-Z]' ;;
        nccl) prefix='p?nccl' ;;
        cufile) prefix='cuFile' ;;
        nvshmem_host) prefix='nvshmem' ;;
        *) prefix=$name ;;
    esac
    { grep -E "^$prefix" "$work/undefined" || true; } | { grep -v @ || true; } | stub >> "$work/stubs.c"
    script=()
    [ ! -s "$work/versions" ] || script=("-Wl,--version-script=$work/versions")
    gcc -shared -fPIC -w -fno-builtin "-Wl,-soname,$library" "${script[@]}" -o "$lib/$library" "$work/stubs.c"
done < "$work/wanted"
"$venv/bin/python" -c 'import diffusers, peft, scipy, torch; (torch.randn(8, 8) @ torch.randn(8, 8)).sum()'
touch "$venv/.done"
