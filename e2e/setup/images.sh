#!/bin/bash
# Makes container images without a container engine: docker archives of tar and sha256, which containerd, kind, docker
# and podman load.
#
#   images.sh --programs DIR [--tag TAG] --out DIR [COMPONENT...]
#   images.sh --prepare     only downloads what it needs
#
#   --programs DIR   where the built programs are: target/release
#   --tag TAG        of all images; the chart's appVersion where not given
#   --out DIR        gets <COMPONENT>.tar for each
#   --lab            what a node of the laboratory needs besides: a sandbox (pause), a shell with a disk (app), and our
#                    player of the registrar under the name that the chart gives the real one
#   --whole          as --lab, and the rest of what the chart runs: Debian's etcd, and our players of csi-controller's
#                    sidecars, under the names that the chart gives the real ones
#   COMPONENT        operator, io-engine, ha-cluster, ha-node, csi-controller, csi-node; all where none is given
#
# An image is a C library and the one program; csi-node has the tools of file systems too. Those come from Debian
# packages of this machine's release (about 10 MB, once, by apt with lists and caches of its own), since programs that
# were linked here run with its C library or a newer one. Nothing is installed.
#
# The same inputs make the same bytes: a layer that did not change is not loaded twice.
set -euo pipefail
shopt -s inherit_errexit

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
chart=$here/../../charts/mayastor
source "$here/debian.sh"
suite=$(. /etc/os-release && [ "${ID:-}" = debian ] && echo "${VERSION_CODENAME:-bookworm}" || echo bookworm)
architecture=$(dpkg --print-architecture)

all_components=(operator io-engine ha-cluster ha-node csi-controller csi-node)
needed_packages=(busybox-static libc6 libgcc-s1 e2fsprogs xfsprogs btrfs-progs util-linux mount)
# What csi-node runs, and what it runs in turn.
node_tools=(
    /bin/mount /bin/umount /sbin/blkid /sbin/mke2fs /sbin/e2fsck /sbin/resize2fs /sbin/mkfs.xfs /sbin/xfs_repair
    /usr/sbin/xfs_growfs /bin/btrfs /sbin/mkfs.btrfs /sbin/fsfreeze
)
# As the chart runs them: these need devices, or folders on the node that are root's.
declare -A user=([io-engine]=0:0 [csi-node]=0:0 [ha-node]=0:0)

fail() { say "$*"; exit 1; }
usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; exit 2; }

# Unpacks the packages into the cache, once for each list of them.
unpacked_packages() {
    local key dir
    key=$suite-$(cat "$here"/{images.sh,debian.sh} | sha256sum | cut -c 1-16)
    dir=$(once images "$key" unpack_packages)
    echo "$dir/root"
}

unpack_packages() { # DIRECTORY
    local dir=$1 deb
    private_apt "$dir/apt" "$suite"
    say "downloading the C library and the tools of file systems from Debian's $suite (about 10 MB)"
    apt-get "${apt[@]}" --no-install-recommends --download-only -y install "${needed_packages[@]}"
    mkdir "$dir/root"
    for deb in "$dir"/apt/archives/*.deb; do
        case ${deb##*/} in
        # Of maintainer scripts, which nobody runs here.
        perl* | libperl* | dpkg_* | debconf_* | passwd_*) continue ;;
        *) dpkg-deb -x "$deb" "$dir/root" ;;
        esac
    done
    rm -rf "$dir/apt" "$dir"/root/usr/share/{doc,man,locale,bash-completion}
}

# The loader's path is written into every program.
loader_of() { # PROGRAM
    ldd "$1" | sed -n 's/^[[:space:]]*\(\/[^ ]*ld-linux[^ ]*\).*/\1/p'
}

# Copies a library out of the packages to where a loader finds it by itself.
add_library() { # PACKAGES TREE NAME
    local found
    found=$(find "$1/lib" "$1/usr/lib" -name "$3" -print -quit)
    [ -n "$found" ] || fail "no package of $suite has $3"
    mkdir -p "$2/usr/lib/$(gcc -print-multiarch)"
    cp -L "$found" "$2/usr/lib/$(gcc -print-multiarch)/$3"
}

# A tree with nothing but a C library and what it reads.
base_tree() { # PACKAGES TREE PROGRAM
    local packages=$1 tree=$2 program=$3 loader name
    mkdir -p "$tree"/{usr/bin,usr/sbin,usr/lib64,usr/lib,usr/local/bin,etc,tmp,proc,sys,dev,run,var}
    for name in bin sbin lib lib64; do ln -s "usr/$name" "$tree/$name"; done
    ln -s /run "$tree/var/run"
    chmod 1777 "$tree/tmp"
    printf 'root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n' >"$tree/etc/passwd"
    printf 'root:x:0:\nnonroot:x:65532:\n' >"$tree/etc/group"
    # Without it the C library asks DNS before it looks into /etc/hosts.
    printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$tree/etc/nsswitch.conf"
    printf 'ID=mayastor\nNAME="Mayastor"\nPRETTY_NAME="Mayastor, with libraries of Debian %s"\n' "$suite" \
        >"$tree/etc/os-release"
    loader=$(loader_of "$program")
    mkdir -p "$tree$(dirname "$loader")"
    cp -L "$(resolve "$packages" "$loader")" "$tree$loader"
    for name in $(ldd "$program" | sed -n 's/^[[:space:]]*\([^ /]*\) => \/.*/\1/p'); do
        add_library "$packages" "$tree" "$name"
    done
}

# The tools of file systems, beside the base.
tools_tree() { # PACKAGES TREE LOADER
    local packages=$1 tree=$2 loader=$3 path tool name
    path=$(library_path "$packages")
    mkdir -p "$tree"/{usr/bin,usr/sbin,etc}
    for tool in "${node_tools[@]}"; do
        tool=${tool#/usr}
        for name in "$tool" "/usr$tool"; do
            [ -e "$packages$name" ] || [ -L "$packages$name" ] || continue
            cp "$(resolve "$packages" "$name")" "$tree/usr$tool"
        done
        [ -e "$tree/usr$tool" ] || fail "no package of $suite has $tool"
        for name in $("$(resolve "$packages" "$loader")" --library-path "$path" --list "$tree/usr$tool" |
            sed -n 's/^[[:space:]]*\([^ /]*\) => \/.*/\1/p'); do
            add_library "$packages" "$tree" "$name"
        done
    done
    for name in ext2 ext3 ext4; do
        ln -s mke2fs "$tree/usr/sbin/mkfs.$name"
        ln -s e2fsck "$tree/usr/sbin/fsck.$name"
    done
    cp "$packages/etc/mke2fs.conf" "$tree/etc/"
    ln -s /proc/self/mounts "$tree/etc/mtab"
}

# The same tree makes the same archive.
pack() { # TREE ARCHIVE
    tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 --format=gnu -C "$1" -cf "$2" .
}

# Prints the digest of a layer made of TREE, which is kept in $work/layers.
layer() { # TREE
    local digest
    pack "$1" "$work/layer.tar"
    digest=$(sha256sum "$work/layer.tar" | cut -d ' ' -f 1)
    mkdir -p "$work/layers"
    mv "$work/layer.tar" "$work/layers/$digest.tar"
    echo "$digest"
}

json_list() { # WORD...
    local joined
    joined=$(printf '"%s",' "$@")
    echo "[${joined%,}]"
}

# A docker archive of some layers.
archive() { # FILE NAME USER ENTRYPOINT LAYER...
    local file=$1 name=$2 user=$3 entrypoint=$4 image=$work/image config digest
    shift 4
    rm -rf "$image"
    mkdir -p "$image"
    config=$(printf '{"architecture":"%s","os":"linux","created":"1970-01-01T00:00:00Z","config":{"User":"%s","Entrypoint":%s,"Env":["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"WorkingDir":"/"},"rootfs":{"type":"layers","diff_ids":%s},"history":%s}' \
        "$architecture" "$user" "$entrypoint" "$(json_list "${@/#/sha256:}")" \
        "[$(printf '{"created":"1970-01-01T00:00:00Z"},%.0s' "$@" | sed 's/,$//')]")
    digest=$(printf %s "$config" | sha256sum | cut -d ' ' -f 1)
    printf %s "$config" >"$image/$digest.json"
    for layer in "$@"; do ln "$work/layers/$layer.tar" "$image/$layer.tar"; done
    printf '[{"Config":"%s.json","RepoTags":["%s"],"Layers":%s}]' "$digest" "$name" "$(json_list "${@/%/.tar}")" \
        >"$image/manifest.json"
    tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 --format=gnu -C "$image" -cf "$file.new" \
        manifest.json "$digest.json" "${@/%/.tar}"
    mv "$file.new" "$file"
}

# The layer of one program, without what only a debugger reads.
program_layer() { # PROGRAM NAME
    rm -rf "$work/program"
    mkdir -p "$work/program/usr/local/bin"
    strip -o "$work/program/usr/local/bin/$2" "$1"
    chmod 755 "$work/program/usr/local/bin/$2"
    layer "$work/program"
}

chart_value() { # KEY: of a line `KEY: value`
    sed -n "s/^ *$1: *\"\{0,1\}\([^\" ]*\).*/\1/p" "$2" | head -n 1
}

main() {
    local programs='' tag='' out='' lab='' whole='' components=() component loader base tools packages name
    while [ $# -gt 0 ]; do
        case $1 in
        --programs) programs=$2 && shift ;;
        --tag) tag=$2 && shift ;;
        --out) out=$2 && shift ;;
        --lab) lab=yes ;;
        --whole) lab=yes whole=yes ;;
        --prepare) unpacked_packages >/dev/null && exit ;;
        -*) usage ;;
        *) components+=("$1") ;;
        esac
        shift
    done
    [ -n "$programs" ] && [ -n "$out" ] || usage
    [ ${#components[@]} -gt 0 ] || components=("${all_components[@]}")
    [ -n "$tag" ] || tag=$(chart_value appVersion "$chart/Chart.yaml")
    for component in "${components[@]}"; do
        [ -x "$programs/$component" ] || fail "$programs/$component is not built: cargo build --release --bins"
    done
    packages=$(unpacked_packages)
    mkdir -p "$out"
    # Not local: the trap runs when this function is over.
    work=$(mktemp -d "$out/.work.XXXXXX")
    trap 'rm -rf "$work"' EXIT

    local first=$programs/${components[0]}
    base_tree "$packages" "$work/base" "$first"
    base=$(layer "$work/base")
    for component in "${components[@]}"; do
        local layers=("$base")
        if [ "$component" = csi-node ]; then
            loader=$(loader_of "$first")
            tools_tree "$packages" "$work/tools" "$loader"
            tools=$(layer "$work/tools")
            layers+=("$tools")
        fi
        layers+=("$(program_layer "$programs/$component" "$component")")
        archive "$out/$component.tar" "localhost/mayastor/$component:$tag" "${user[$component]:-65532:65532}" \
            "[\"/usr/local/bin/$component\"]" "${layers[@]}"
        echo "$out/$component.tar"
    done
    [ -n "$lab" ] || return 0

    mkdir -p "$work/busybox"/{usr/bin,tmp}
    ln -s usr/bin "$work/busybox/bin"
    cp "$packages/bin/busybox" "$work/busybox/bin/"
    for name in sh cat ls dd df sync sleep mount rm touch sha256sum test mkdir stat blockdev echo date; do
        ln -s busybox "$work/busybox/bin/$name"
    done
    name=$(layer "$work/busybox")
    archive "$out/pause.tar" localhost/pause:3.2 0:0 '["/bin/sleep","2147483647"]' "$name"
    archive "$out/app.tar" localhost/app:1 0:0 '["/bin/sh","-c"]' \
        "$base" "$name" "$(program_layer "$programs/guest-agent" guest-agent)"
    sidecar "$out" node-driver-registrar csi-node-driver-registrar registrarTag 0:0 '["/usr/local/bin/registrar"]' \
        "$base" "$(program_layer "$programs/registrar" registrar)"
    for name in pause app node-driver-registrar; do echo "$out/$name.tar"; done
    [ -n "$whole" ] || return 0

    local player
    player=$(program_layer "$programs/player" player)
    for name in provisioner attacher resizer; do
        sidecar "$out" "$name" "csi-$name" "${name}Tag" 65532:65532 "[\"/usr/local/bin/player\",\"$name\"]" "$base" "$player"
        echo "$out/$name.tar"
    done
    command -v etcd >/dev/null || fail "there is no etcd: e2e/setup/host-packages.sh installs it"
    sed -n '/^etcd:/,$p' "$chart/values.yaml" >"$work/etcd.yaml"
    name=$(chart_value registry "$work/etcd.yaml")/$(chart_value repo "$work/etcd.yaml")
    archive "$out/etcd.tar" "$name:$(chart_value tag "$work/etcd.yaml")" 0:0 '["/usr/local/bin/etcd"]' \
        "$base" "$(program_layer "$(command -v etcd)" etcd)"
    echo "$out/etcd.tar"
}

# A program of ours that plays a sidecar, under the name that the chart gives the real one.
sidecar() { # DIRECTORY FILE NAME TAG_KEY USER ENTRYPOINT LAYER...
    local out=$1 file=$2 name=$3 key=$4
    shift 4
    archive "$out/$file.tar" "registry.k8s.io/sig-storage/$name:$(chart_value "$key" "$chart/values.yaml")" "$@"
}

main "$@"
