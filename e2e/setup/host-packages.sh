#!/bin/bash
# Installs what building and testing need on Debian 12, and says what and why. As root, or with sudo.
#
# Does nothing, in well under a second, when nothing is missing. What a program of the machine provides is not replaced
# by a package. No service is started: the tests start their own etcd on ports of their own.
#
#   host-packages.sh          install what is missing
#   host-packages.sh --check  only say what is missing; exit 1 if anything is
set -euo pipefail

# The workspace's rust-version.
rust_needed=1.89
# Pinned so that a fresh machine gets the runner that this tree was tested with. Raise freely.
nextest_version=0.9.143

PATH=$PATH:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin
packages=()
reasons=()

say() { echo "host-packages: $*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }
need() { # PACKAGE REASON
    packages+=("$1")
    reasons+=("$1: $2")
}

has gcc || need gcc "links Rust programs, and compiles the C parts of the TLS library"
[ -e /usr/include/stdio.h ] || need libc6-dev "the C library's headers, for the same"
has make || need make "runs the Makefile"
has protoc || need protobuf-compiler "compiles the gRPC interfaces (io-engine, etcd, CSI)"
[ -e /usr/include/google/protobuf/timestamp.proto ] || need libprotobuf-dev "the standard types those interfaces import"
has etcd || need etcd-server "the store of the control plane; tests start their own"
has etcdctl || need etcd-client "looks into that store"
has ip || need iproute2 "gives every engine a network namespace and an address"
has nft || need nftables "cuts network links between them"
has nsenter || need util-linux "starts engines in their namespaces"
has gpgv || need gpgv "checks the signatures of Debian's package lists"
[ -e /etc/ssl/certs/ca-certificates.crt ] || need ca-certificates "lets cargo download over https"

# A cargo that is too old for the workspace is as good as none.
rust_is_recent() {
    local found
    found=$(cargo --version 2>/dev/null | sed -n 's/^cargo \([0-9]*\.[0-9]*\).*/\1/p' || true)
    [ -n "$found" ] && printf '%s\n%s\n' "$rust_needed" "$found" | sort -V -C
}
if ! rust_is_recent; then
    if has rustup; then
        say "$(cargo --version || true) is too old, $rust_needed is needed: run \`rustup update stable\`"
        exit 1
    fi
    need cargo-web "Rust $rust_needed or newer; Debian's rustc is older, this is Debian's too"
    need rustc-web "its compiler"
    need rustfmt-web "its formatter, for make lint"
    need rust-web-clippy "its linter, for make lint"
fi
nextest_missing=
has cargo-nextest || nextest_missing=yes

if [ ${#packages[@]} -eq 0 ] && [ -z "$nextest_missing" ]; then
    exit 0
fi
for reason in "${reasons[@]}"; do say "missing: $reason"; done
[ -z "$nextest_missing" ] || say "missing: cargo-nextest: runs the tests, each in a process of its own"
if [ "${1:-}" = --check ]; then
    exit 1
fi

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif has sudo; then
        sudo "$@"
    else
        say "this needs root: run \`apt-get install ${packages[*]}\` as root, then try again"
        exit 1
    fi
}

if [ ${#packages[@]} -gt 0 ]; then
    has apt-get || { say "this is no Debian machine; install by its own means what is named above"; exit 1; }
    say "installing by apt-get: ${packages[*]}"
    # Debian starts a service with its package, unless this file says no.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        as_root sh -c "printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy"
        trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    as_root apt-get -qq update || say "some package lists could not be read; trying with the others"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends install "${packages[@]}"
    case " ${packages[*]} " in
    *" etcd-server "*)
        # Nor at the next boot.
        as_root deb-systemd-helper disable etcd.service >/dev/null || say "etcd.service stays enabled"
        ;;
    esac
fi

if ! rust_is_recent; then
    say "Debian's mirror has $(cargo --version), $rust_needed is needed: add bookworm-security to the apt sources, or use rustup"
    exit 1
fi
if [ -n "$nextest_missing" ]; then
    say "building cargo-nextest $nextest_version with cargo (once, some minutes)"
    # It waits for tests all its life: what optimisation saves there is less than what it costs here.
    CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        CARGO_PROFILE_RELEASE_DEBUG=0 \
        cargo install --quiet --locked --no-default-features --features default-no-update "cargo-nextest@$nextest_version"
fi
say "done"
