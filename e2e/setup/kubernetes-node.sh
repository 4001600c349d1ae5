#!/bin/bash
# Prepares what a Kubernetes node in a virtual machine is made of: a Debian cloud kernel, an initramfs that finds the
# root disk, and the image of that disk with containerd, runc, a kubelet and a kube-proxy, and a systemd for whoever boots
# it with that.
#
#   kubernetes-node.sh   prepare; prints the directory that holds vmlinuz, initramfs.gz and root.img
#
# Debian's packages are downloaded (about 130 MB, once) and unpacked by apt with lists and caches of its own. Nothing is
# installed, and no maintainer script runs: what is needed of them is done here. kubelet and kube-proxy are those that
# kubernetes.sh builds.
#
# The directory is named after the contents of the files that made it.
#
# XDG_CACHE_HOME moves the cache. MAYASTOR_LAB_DEBIAN_MIRROR names another mirror; debian-security must be beside it.
set -euo pipefail
shopt -s inherit_errexit

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/debian.sh"
# Sparse: it takes what is written.
root_size=4G

node_packages=(
    containerd runc containernetworking-plugins iptables conntrack socat iproute2 kmod util-linux mount busybox-static
    e2fsprogs systemd dbus
)
cni_plugins=(bridge host-local loopback portmap)
# To find the root disk.
boot_modules=(virtio_pci virtio_blk ext4 crc32c_generic)
# Loaded by the node at its start.
node_modules=(
    virtio_net virtio_console virtio_rng overlay br_netfilter bridge veth loop nvme-fabrics nvme-tcp
    nf_tables nft_compat nft_chain_nat nf_nat xt_comment xt_mark xt_conntrack xt_MASQUERADE xt_nat xt_addrtype xt_statistic
    xt_tcpudp ipt_REJECT nf_conntrack_netlink
)
# On demand.
other_modules=(xfs btrfs sch_netem)

# Unpacks packages into one tree where /bin, /sbin and /lib are links, as in an installed Debian.
unpack() { # ROOT DEB...
    local root=$1 deb name
    shift
    mkdir -p "$root"/usr/{bin,sbin,lib,lib64}
    for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
    for deb in "$@"; do
        case ${deb##*/} in
        # Of maintainer scripts, which nobody runs here.
        perl* | libperl* | dpkg_* | debconf_* | passwd_* | adduser_* | tar_*) continue ;;
        esac
        # A package's own /lib must not take the place of the link.
        dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink
    done
}

# Copies modules with all that they need, and indexes them.
add_modules() { # ROOT KERNEL RELEASE TREE MODULE...
    local root=$1 kernel=$2 release=$3 tree=$4 module
    shift 4
    unpacked "$root" /sbin/modprobe -d "$kernel" -S "$release" --show-depends -a "$@" |
        sed -n 's/^insmod \([^ ]*\).*/\1/p' | sort -u >"$kernel/wanted"
    while read -r module; do
        install -D -m 644 "$module" "$tree/usr${module#"$kernel"}"
    done <"$kernel/wanted"
    cp "$kernel/lib/modules/$release"/modules.{builtin,builtin.modinfo,order} "$tree/usr/lib/modules/$release/"
    [ -e "$tree/lib" ] || ln -s usr/lib "$tree/lib"
    unpacked "$root" /sbin/depmod -b "$tree" "$release"
}

prepare_into() { # BINARIES DIRECTORY
    local binaries=$1 dir=$2 work=$2/work root=$2/work/root kernel=$2/work/kernel boot=$2/work/boot package release name
    mkdir -p "$work"
    private_apt "$work" bookworm
    package=$(kernel_package)
    say "downloading containerd and its surroundings, and $package (about 130 MB)"
    apt-get "${apt[@]}" --no-install-recommends --download-only -y install "${node_packages[@]}"
    mkdir "$work/kernel-package"
    (cd "$work/kernel-package" && apt-get "${apt[@]}" download "$package")
    say "unpacking"
    unpack "$root" "$work"/archives/*.deb
    dpkg-deb -x "$work"/kernel-package/*.deb "$kernel"
    rm -rf "$work/archives" "$work/kernel-package" "$work/lists"
    release=$(ls "$kernel/lib/modules")
    cp "$kernel/boot/vmlinuz-$release" "$dir/vmlinuz"
    unpacked "$root" /sbin/depmod -b "$kernel" "$release"
    add_modules "$root" "$kernel" "$release" "$root" "${boot_modules[@]}" "${node_modules[@]}" "${other_modules[@]}"

    say "building the initramfs for $release"
    mkdir -p "$boot"/{bin,proc,sys,dev,newroot}
    add_modules "$root" "$kernel" "$release" "$boot" "${boot_modules[@]}"
    cp "$root/usr/bin/busybox" "$boot/bin/"
    cp "$here/guest/node-boot" "$boot/init"
    chmod +x "$boot/init"
    # In the order in which they need each other, as nothing in there resolves it.
    unpacked "$root" /sbin/modprobe -d "$kernel" -S "$release" --show-depends -a "${boot_modules[@]}" |
        sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' | sed "s#^$kernel#/usr#" >"$boot/boot-modules"
    (cd "$boot" && find . -mindepth 1 | LC_ALL=C sort | "$root/usr/bin/busybox" cpio -o -H newc 2>/dev/null) |
        gzip -1 -n >"$dir/initramfs.gz"

    say "building the root disk"
    furnish "$root"
    install -m 755 "$binaries/kubelet" "$binaries/kube-proxy" "$root/usr/bin/"
    unpacked "$root" /sbin/mke2fs -q -t ext4 -E lazy_itable_init=1,nodiscard -d "$root" "$dir/root.img" $root_size
    rm -rf "$work"
}

# What maintainer scripts would have done, and what a node does not need.
furnish() { # ROOT
    local root=$1 name
    for name in "$root"/usr/lib/cni/*; do
        [[ " ${cni_plugins[*]} " == *" ${name##*/} "* ]] || rm "$name"
    done
    rm -rf "$root"/usr/share/{doc,man,locale,lintian,bash-completion,info,zoneinfo} "$root/usr/bin/containerd-stress" \
        "$root/var/lib/dpkg" "$root"/usr/lib/x86_64-linux-gnu/{gconv,perl*}
    mkdir -p "$root"/{proc,sys,dev,run,tmp,root,mnt,var/lib,var/log,opt/cni,lab} "$root"/etc/{cni/net.d,containerd}
    chmod 1777 "$root/tmp"
    [ -e "$root/var/run" ] || ln -s /run "$root/var/run"
    for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
        ln -sf xtables-nft-multi "$root/usr/sbin/$name"
    done
    printf '%s\n' root:x:0:0:root:/root:/bin/sh messagebus:x:100:100::/:/sbin/nologin \
        nobody:x:65534:65534:nobody:/:/sbin/nologin >"$root/etc/passwd"
    printf '%s:\n' root:x:0 messagebus:x:100 nogroup:x:65534 >"$root/etc/group"
    printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$root/etc/nsswitch.conf"
    # Pods get a copy of it, even where there is nothing in it.
    : >"$root/etc/resolv.conf"
    ln -sf /proc/self/mounts "$root/etc/mtab"
    printf '%s\n' "${node_modules[@]}" >"$root/etc/node-modules"
    cp "$here/guest/containerd.toml" "$root/etc/containerd/config.toml"
    install -m 755 "$here/guest/node-init" "$root/usr/sbin/node-init"
    install -D -m 644 "$here/guest/guest-agent.service" -t "$root/etc/systemd/system"
    ln -sf multi-user.target "$root/usr/lib/systemd/system/default.target"
    install -d "$root/etc/systemd/system/multi-user.target.wants"
    ln -s ../guest-agent.service "$root/etc/systemd/system/multi-user.target.wants/"
}

binaries=$("$here/kubernetes.sh" kubelet kube-proxy)
key=$(cat "$here"/{kubernetes-node.sh,debian.sh,guest/node-boot,guest/node-init,guest/guest-agent.service,guest/containerd.toml} <(echo "$binaries") |
    sha256sum | cut -c 1-16)
once kubernetes-node "$key" prepare_into "$binaries"
