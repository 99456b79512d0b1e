#!/bin/sh
# The build stage's command: build.sh cpu|cuda DESTINATION puts the binary and what it reads beside it there. Runs in the image, and here.
set -eu
flavour=${1:?usage: build.sh cpu|cuda DESTINATION}
to=${2:?usage: build.sh cpu|cuda DESTINATION}
cd "$(dirname "$0")/../.."
binary=$(deploy/program.sh "$flavour")
mkdir -p "$to/bin" "$to/srv/models" "$to/state"
install -m 755 "$binary" "$to/bin/atelier"
cp models/*.yaml "$to/srv/models/"
cp -R models/tiny-sd models/tiny-edit models/tiny-checker models/tiny-segmenter "$to/srv/models/"
if [ "$flavour" = cuda ]; then deploy/image/libraries.sh "$to"; fi
