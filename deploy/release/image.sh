#!/bin/sh
# Prints the name of an image of this release: image.sh OWNER/REPOSITORY vX.Y.Z [SUFFIX]. Registries take no capital letters in it, and GitHub's owners may
# have them.
set -eu
repository=${1:?usage: image.sh OWNER/REPOSITORY vX.Y.Z [SUFFIX]}
tag=${2:?usage: image.sh OWNER/REPOSITORY vX.Y.Z [SUFFIX]}
echo "ghcr.io/$(printf %s "$repository" | tr '[:upper:]' '[:lower:]'):${tag#v}${3:-}"
