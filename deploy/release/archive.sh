#!/bin/sh
# Builds the program and packs it with what its users read: archive.sh cpu|cuda DESTINATION. Prints the archive's path.
# CUDA_COMPUTE_CAP and ATELIER_BINARY are those of deploy/program.sh.
set -eu
flavour=${1:?usage: archive.sh cpu|cuda DESTINATION}
destination=${2:?usage: archive.sh cpu|cuda DESTINATION}
cd "$(dirname "$0")/../.."
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
binary=$(deploy/program.sh "$flavour")
[ "$flavour" = cpu ] && kind=cpu || kind=cuda-sm${CUDA_COMPUTE_CAP:-80}
name=atelier-$version-linux-$(uname -m)-$kind
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/$name/models" "$destination"
install -m 755 "$binary" "$work/$name/atelier"
# The bundled models are inside of the program.
cp models/*.yaml "$work/$name/models/"
cp -R docs/completions docs/atelier.1 config.yaml CHANGELOG.md LICENSE THIRD-PARTY-LICENSES "$work/$name/"
# The same files give the same bytes.
tar --create --directory "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@${SOURCE_DATE_EPOCH:-0}" --file "$work/archive" "$name"
gzip -n < "$work/archive" > "$destination/$name.tar.gz"
echo "$destination/$name.tar.gz"
