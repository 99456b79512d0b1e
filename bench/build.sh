#!/bin/sh
# What a change costs in a run of the tests: bench/build.sh [CHECKOUT], of this or of an earlier commit. Prints CPU seconds of
# `cargo test --no-run` after a line was added to a file of the engine, of the host, and of the tests, and how many of them linked the tests.
set -eu
cd "${1:-"$(dirname "$0")/.."}"
work=$(mktemp -d)
changed=
restore() {
    [ -z "$changed" ] || cp -p "$work/kept" "$changed"
    changed=
}
trap 'restore; rm -rf "$work"' EXIT

# rustc links with the `cc` that it finds first; this one writes down what the real one took.
real=$(command -v cc)
cat > "$work/cc" << EOF
#!/bin/sh
exec /usr/bin/time --append --output "$work/links" --format "%U %S \$*" "$real" "\$@"
EOF
chmod +x "$work/cc"

build() {
    : > "$work/links"
    PATH=$work:$PATH /usr/bin/time --output "$work/time" --format "%U %S" cargo test --quiet --locked --no-run 2> "$work/errors" ||
        { cat "$work/errors"; exit 1; }
}

# One line: what was changed, and the CPU seconds of everything and of linking the binaries of integration tests.
measure() {
    changed=$2
    cp -p "$changed" "$work/kept"
    echo "$3" >> "$changed"
    build
    restore
    linked=$(awk '/deps\/it-[0-9a-f]+( |$)/ { seconds += $1 + $2 } END { printf "%.1f", seconds }' "$work/links")
    awk -v what="$1" -v linked="$linked" '{ printf "%-8s %6.1f s, of these %s s to link test binaries\n", what, $1 + $2, linked }' "$work/time"
}

build
for file in crates/engine/src/noise.rs src/engine/noise.rs; do
    [ ! -f "$file" ] || measure engine "$file" '#[doc(hidden)] pub fn measured() -> usize { 1 }'
done
measure host src/host/mod.rs '#[doc(hidden)] pub fn measured() -> usize { 1 }'
measure tests tests/it/bucket.rs '#[test] fn measured() {}'
# What was changed is built as it was, for the next who builds.
build
