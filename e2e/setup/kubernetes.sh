#!/usr/bin/env bash
# Builds a real Kubernetes API server once, from Debian's source package, and keeps it in the user's cache folder.
#
# Tests and the demo run against an API server of their own, never against the cluster a user's kubeconfig names.
# Debian's newest full Kubernetes source is 1.20; two vendored pieces of it break custom resources under Go 1.19 and
# are patched here. Everything needed for the build is unpacked beside it and removed afterwards: nothing is installed
# but make, dpkg-dev and their like where they are missing, and the machine's own apt configuration is left alone.
set -euo pipefail

readonly VERSION=1.20.2
# Raised when a patch or the way of building changes, so that cached binaries of the old way are built anew.
readonly RECIPE=1
readonly SUITE=bookworm
readonly MIRROR=${MAYASTOR_LAB_DEBIAN_MIRROR:-http://deb.debian.org/debian}
readonly CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/mayastor-lab
readonly HOME_DIR=$CACHE/kubernetes-$VERSION-$RECIPE
readonly WORK=$HOME_DIR.work
readonly LOG=$HOME_DIR.log
readonly DISK_NEEDED_MIB=4096

usage() {
    cat <<USAGE
usage: ${0##*/} [COMPONENT...]

Makes sure that kube-apiserver and kubectl, and the COMPONENTs named (kube-controller-manager, kube-scheduler,
kubelet, kube-proxy), lie in the cache folder, builds what is missing, and prints the folder with the binaries.

  --print-dir   print that folder and do nothing else

The first build takes three to six minutes on two cores and 3 GB of disk for its time; a repeat takes no time.
XDG_CACHE_HOME moves the cache; MAYASTOR_LAB_DEBIAN_MIRROR names another Debian mirror.
USAGE
}

say() { printf 'kubernetes: %s\n' "$*" >&2; }

fail() {
    say "$*"
    if [[ -s $LOG ]]; then
        say "the end of the log:"
        tail -n 15 "$LOG" >&2
        say "all of it: $LOG"
    fi
    exit 1
}

# The phase that runs, as a process group of its own, so that an interrupted script leaves nothing behind.
phase_pid=
# Called by the traps below.
# shellcheck disable=SC2317
stop_phase() {
    if [[ -n $phase_pid ]]; then
        kill -TERM -- "-$phase_pid" 2>/dev/null || true
        wait "$phase_pid" 2>/dev/null || true
    fi
    # Go keeps parts of its tree read-only.
    if [[ -d $WORK ]]; then chmod -R u+w "$WORK" 2>/dev/null || true; rm -rf "$WORK"; fi
}

# phase NAME COMMAND...: runs COMMAND with its output in the log and says every few seconds that it still does.
phase() {
    local name=$1 started=$SECONDS said=$SECONDS
    shift
    say "$name"
    printf '\n== %s\n' "$name" >>"$LOG"
    set -m
    ( set -e; "$@" ) >>"$LOG" 2>&1 </dev/null &
    phase_pid=$!
    set +m
    while kill -0 "$phase_pid" 2>/dev/null; do
        sleep 0.2
        if (( SECONDS - said >= 5 )); then
            said=$SECONDS
            say "$name: $((SECONDS - started)) s"
        fi
    done
    local code=0
    wait "$phase_pid" || code=$?
    phase_pid=
    (( code == 0 )) || fail "$name failed with exit code $code"
}

# Installs the few everyday tools of a Debian build where they are missing.
require_tools() {
    local missing=()
    command -v make >/dev/null || missing+=(make)
    command -v dpkg-source >/dev/null || missing+=(dpkg-dev)
    command -v xz >/dev/null || missing+=(xz-utils)
    command -v patch >/dev/null || missing+=(patch)
    (( ${#missing[@]} == 0 )) && return
    local root=()
    if (( EUID != 0 )); then
        command -v sudo >/dev/null || fail "please install: ${missing[*]}"
        root=(sudo)
    fi
    phase "installing ${missing[*]}" "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends "${missing[@]}"
}

# apt with lists, sources and caches of its own.
private_apt() {
    local command=$1
    shift
    "$command" -o Dir::Etc::SourceList="$WORK/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::Lists="$WORK/apt/lists" -o Dir::Cache="$WORK/apt/cache" -o APT::Sandbox::User= \
        -o Acquire::Languages=none -o Acquire::Retries=3 -o APT::Get::List-Cleanup=0 "$@"
}

prepare_apt() {
    mkdir -p "$WORK/apt/lists/partial" "$WORK/apt/cache/archives/partial" "$WORK/debs" "$WORK/root"
    local signed=
    [[ -e /usr/share/keyrings/debian-archive-keyring.gpg ]] &&
        signed='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
    printf '%s %s %s %s main\n' deb "$signed" "$MIRROR" $SUITE deb-src "$signed" "$MIRROR" $SUITE \
        >"$WORK/apt/sources.list"
    # Without this a mirror that cannot be reached is a warning, and the failure comes later with other words.
    private_apt apt-get -o APT::Update::Error-Mode=any update
}

unpack_debs() {
    cd "$WORK/debs"
    private_apt apt-get download "$@"
    local deb
    for deb in ./*.deb; do dpkg -x "$deb" "$WORK/root"; done
    rm -f ./*.deb
}

unpack_source() {
    cd "$WORK"
    private_apt apt-get source --download-only kubernetes
    mkdir -p gopath/src/k8s.io
    dpkg-source --no-check -x kubernetes_*.dsc "$WORK/gopath/src/k8s.io/kubernetes"
    rm -f kubernetes_*
}

patch_source() {
    cd "$WORK/gopath/src/k8s.io/kubernetes"
    # The vendored reflect2 walks maps by the layout of an older Go and crashes the API server at the first custom
    # resource; Debian's own package of it knows Go 1.19.
    local old=vendor/github.com/modern-go/reflect2
    local new=$WORK/root/usr/share/gocode/src/github.com/modern-go/reflect2
    rm -f $old/*.go $old/*.s
    cp "$new"/*.go "$new"/*.s $old/
    rm -f $old/*_test.go
    # The validator compares with a zero value that, under Go 1.19, an empty string equals too, and then refuses empty
    # strings in custom resources as null.
    local validator=vendor/k8s.io/kube-openapi/pkg/validation/validate/type.go
    sed -i -E 's/if data == nil \|\| reflect\.DeepEqual\(reflect\.Zero\([^{]*\{/if data == nil {/' $validator
    sed -n '/if data == nil {/p' $validator | grep -q . || { echo "the validator is not as expected"; return 1; }
    # An import that the patch may have left without a use would stop the compiler.
    if [[ $(grep -c 'reflect\.' $validator) -eq 0 ]]; then sed -i '/^\t"reflect"$/d' $validator; fi
    # Without a git tree the build would call itself v0.0.0, and tools that look at the server's version would balk.
    cat >"$WORK/version" <<GIT
KUBE_GIT_COMMIT=debian
KUBE_GIT_TREE_STATE=archive
KUBE_GIT_VERSION=v$VERSION
KUBE_GIT_MAJOR=1
KUBE_GIT_MINOR=20
GIT
}

# The build copies its results by rsync, which may need libraries of its own unpacking.
wrap_rsync() {
    mkdir -p "$WORK/bin"
    cat >"$WORK/bin/rsync" <<WRAP
#!/bin/sh
LD_LIBRARY_PATH=$WORK/root/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH) exec $WORK/root/usr/bin/rsync "\$@"
WRAP
    chmod +x "$WORK/bin/rsync"
}

build() {
    cd "$WORK/gopath/src/k8s.io/kubernetes"
    # One walk over all components, so that the generated code is made once.
    env -u GOFLAGS -u GOOS -u GOARCH \
        PATH="$WORK/root/usr/lib/go-1.19/bin:$WORK/bin:$PATH" GOROOT="$WORK/root/usr/lib/go-1.19" \
        GOPATH="$WORK/gopath" GOCACHE="$WORK/gocache" GO111MODULE=off CGO_ENABLED=0 \
        KUBE_GIT_VERSION_FILE="$WORK/version" make WHAT="${*/#/cmd/}"
}

# keep SOURCE: into the folder of the finished binaries, whole or not at all.
keep() {
    mkdir -p "$HOME_DIR/bin"
    local name=${1##*/}
    install -m 0755 "$1" "$HOME_DIR/bin/.$name.new"
    mv -f "$HOME_DIR/bin/.$name.new" "$HOME_DIR/bin/$name"
}

keep_all() {
    local component
    for component in "$@"; do
        keep "$WORK/gopath/src/k8s.io/kubernetes/_output/local/bin/linux/$(dpkg --print-architecture)/$component"
    done
}

missing_of() {
    local component
    for component in "$@"; do [[ -x $HOME_DIR/bin/$component ]] || printf '%s\n' "$component"; done
}

main() {
    local components=(kube-apiserver)
    while (( $# > 0 )); do
        case $1 in
            -h | --help) usage; exit 0 ;;
            --print-dir) printf '%s\n' "$HOME_DIR/bin"; exit 0 ;;
            kube-apiserver) ;;
            kube-controller-manager | kube-scheduler | kubelet | kube-proxy) components+=("$1") ;;
            *) usage >&2; exit 2 ;;
        esac
        shift
    done

    if [[ -z $(missing_of kubectl "${components[@]}") ]]; then
        printf '%s\n' "$HOME_DIR/bin"
        return
    fi

    mkdir -p "$CACHE"
    exec 9>"$HOME_DIR.lock"
    if ! flock -n 9; then
        say "another run builds already, waiting for it"
        flock 9
    fi
    local missing
    mapfile -t missing < <(missing_of "${components[@]}")
    if (( ${#missing[@]} > 0 )); then
        local free_mib
        free_mib=$(($(df -Pk "$CACHE" | awk 'NR == 2 { print $4 }') / 1024))
        (( free_mib >= DISK_NEEDED_MIB )) ||
            fail "$CACHE has $free_mib MiB free, the build needs $DISK_NEEDED_MIB MiB for its time"
    fi

    trap stop_phase EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    rm -rf "$WORK"
    mkdir -p "$WORK"
    : >"$LOG"
    local started=$SECONDS
    require_tools
    phase "fetching Debian's package lists from $MIRROR" prepare_apt
    if [[ ! -x $HOME_DIR/bin/kubectl ]]; then
        phase "fetching kubectl" unpack_debs kubernetes-client
        keep "$WORK/root/usr/bin/kubectl"
    fi
    if (( ${#missing[@]} > 0 )); then
        phase "fetching Go 1.19 and what the build needs" unpack_debs golang-1.19-go golang-1.19-src \
            golang-github-modern-go-reflect2-dev rsync libpopt0 libxxhash0
        phase "fetching and unpacking the source of Kubernetes $VERSION" unpack_source
        phase "patching it for Go 1.19" patch_source
        phase "preparing rsync" wrap_rsync
        phase "building ${missing[*]} (three minutes or more, once)" build "${missing[@]}"
        phase "keeping the binaries" keep_all "${missing[@]}"
    fi
    rm -f "$LOG"
    say "ready after $((SECONDS - started)) s in $HOME_DIR/bin"
    printf '%s\n' "$HOME_DIR/bin"
}

main "$@"
