#!/bin/sh
# Finds what some tests need of Debian's packages (RabbitMQ, openssl, faketime, curl), or unpacks it below DIR; root is not needed, and no service
# starts. Prints the directory that has it: ATELIER_TEST_SERVERS=$(tests/servers.sh DIR) cargo test. Fails where something is missing.
set -eu
directory=${1:?usage: tests/servers.sh DIR}
architecture=$(uname -m)-linux-gnu

# One line for each server that is not below the directory $1 (of the system: nothing), with the package that has it.
missing() {
    [ -x "$1/usr/lib/rabbitmq/bin/rabbitmq-server" ] && [ -x "$1/usr/bin/epmd" ] || echo "RabbitMQ (package rabbitmq-server)"
    [ -x "$1/usr/bin/curl" ] || echo "the README's callers (package curl)"
    [ -x "$1/usr/bin/openssl" ] || echo "openssl (package openssl)"
    [ -e "$1/usr/lib/$architecture/faketime/libfaketimeMT.so.1" ] || echo "clocks that are off (package faketime)"
}

# apt-get with lists and downloads of its own, since those of the system are root's.
apt_get() {
    apt-get -qq -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User="$(id -un)" "$@"
}

# Every package of the servers, and those libraries of theirs that the system lacks.
packages() {
    # With no package installed, apt lists all that the servers would bring.
    : > "$work/status"
    apt_get -o Dir::State::status="$work/status" -s install --no-install-recommends rabbitmq-server openssl faketime curl |
        sed -n 's/^Inst \([^ ]*\) .*/\1/p' | while read -r package; do
        case $package in
        rabbitmq-server | erlang-* | openssl | faketime | libfaketime | curl) echo "$package" ;;
        lib*) dpkg-query -W -f '${Status}' "$package" 2> "$work/unknown" | grep -q ' installed' || echo "$package" ;;
        esac
    done
}

unpack() {
    work=$directory.partial
    rm -rf "$work"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/root"
    work=$(cd "$work" && pwd)
    apt_get update
    wanted=$(packages)
    # shellcheck disable=SC2086 # one word for each package
    (cd "$work/cache" && apt_get download $wanted)
    for package in "$work"/cache/*.deb; do
        dpkg-deb -x "$package" "$work/root"
    done
    # Debian's `erl` is sure of its place.
    sed -i 's|ROOTDIR=/usr/lib/erlang|ROOTDIR=$(dirname "$(dirname "$(readlink -f "$0")")")|' "$work/root/usr/lib/erlang/bin/erl"
    rm -rf "$directory"
    mv "$work/root" "$directory"
    rm -rf "$work"
}

if [ -z "$(missing '')" ]; then
    echo /
    exit
fi
mkdir -p "$directory"
(cd "$directory" && pwd)
trap 'missing "$directory" | sed "s/^/left out: /" >&2' EXIT
if [ -n "$(missing "$directory")" ] && command -v apt-get > /dev/null && command -v dpkg-deb > /dev/null; then
    echo "unpacking RabbitMQ, openssl, faketime and curl below $directory" >&2
    unpack >&2
fi
[ -z "$(missing "$directory")" ]
