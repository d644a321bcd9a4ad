#!/bin/sh
# What the demo of compose.yaml needs before its server starts: a store with one real base and three
# adapters, and two keys. Run again it changes nothing.
#   prepare.sh STORE KEYS    KEYS is the directory that the other containers read the keys from
set -eu
store=$1
keys=$2

python -m demo.prepare --store "$store" --base "${DEMO_BASE:-/opt/demo/base}"

# make_key FILE ARGUMENT…: a key whose secret is in FILE alone; the store keeps a hash of it.
make_key() {
    file=$1
    shift
    if [ -s "$file" ]; then
        return
    fi
    adapterctl --store "$store" keys create "$@" > "$file.new"
    # The volume is what protects it: the containers that read it run as different users.
    chmod 0444 "$file.new"
    mv "$file.new" "$file"
}

mkdir -p "$keys"
make_key "$keys/admin" --label admin --scope admin
make_key "$keys/traffic" --label traffic --tenant demo
