#!/bin/bash
# Checks that the whole workspace compiles for arm64, tests and benches too; nothing is linked or run.
#
# Takes rustup's standard library for that machine, and Debian's cross compiler for what dependencies have in C (the TLS
# library). Both are installed where they are missing, which is said.
set -euo pipefail

target=aarch64-unknown-linux-gnu
compiler=aarch64-linux-gnu-gcc
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

say() { echo "arm64: $*" >&2; }

if ! [ -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
    if ! command -v rustup >/dev/null; then
        say "Rust's standard library for $target is missing: with rustup, \`rustup target add $target\`; with Debian's" \
            "rustc-web, \`dpkg --add-architecture arm64 && apt-get update && apt-get install libstd-rust-web-dev:arm64\`"
        exit 1
    fi
    say "adding rustup's standard library for $target"
    rustup target add "$target"
fi
if ! command -v "$compiler" >/dev/null; then
    as_root=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { say "as root: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross"; exit 1; }
        as_root=(sudo)
    fi
    say "installing by apt-get: gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
    "${as_root[@]}" apt-get -qq update || say "some package lists could not be read; trying with the others"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends \
        install gcc-aarch64-linux-gnu libc6-dev-arm64-cross
fi
CC_aarch64_unknown_linux_gnu=$compiler cargo check --locked --workspace --all-targets --target "$target"
