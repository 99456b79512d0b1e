#!/bin/sh
# Prints what CHANGELOG.md says of the version of a tag, and fails where that is not to be released: notes.sh vX.Y.Z
set -eu
tag=${1:?usage: notes.sh vX.Y.Z}
cd "$(dirname "$0")/../.."
version=${tag#v}
ours=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
if [ "$tag" != "v$ours" ]; then
    echo "the tag is $tag and Cargo.toml has the version $ours: the tag must be v$ours" >&2
    exit 1
fi
heading=$(grep -m 1 -F "## $version (" CHANGELOG.md) || { echo "CHANGELOG.md has no heading \`## $version (date)\`" >&2; exit 1; }
case $heading in
    "## $version ("[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]")") ;;
    *) echo "CHANGELOG.md says \`$heading\`: write the day of the release, \`## $version (YYYY-MM-DD)\`" >&2; exit 1 ;;
esac
awk -v heading="$heading" '$0 == heading { inside = 1; next } /^## / { inside = 0 } inside' CHANGELOG.md
