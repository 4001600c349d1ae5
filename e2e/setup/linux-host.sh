#!/bin/bash
# Prepares the parts of the virtual Linux host: qemu, a Debian cloud kernel and an initramfs.
#
#   linux-host.sh [bookworm|bookworm-backports]   prepare; prints the directory that holds the parts
#   linux-host.sh pack NAME=FILE...               pack programs of ours with their libraries; prints the archive
#
# The kernels of the two suites (6.1 and 6.12) lose a path in different ways, so both are to be had.
#
# Everything is downloaded from Debian's archive (about 110 MB, once) and unpacked into the user's cache folder, by
# ordinary `apt-get` with lists and caches of its own: nothing is installed, no package of the machine is touched, and
# root is not needed. Programs from there run with the libraries they came with.
#
# A directory of parts is named after the contents of the files that made it.
#
# XDG_CACHE_HOME moves the cache. MAYASTOR_LAB_DEBIAN_MIRROR names another mirror; debian-security must be beside it.
set -euo pipefail
shopt -s inherit_errexit

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/debian.sh"

# What the harness runs here (qemu), and what the guest runs: busybox for the everyday tools, and the real ones where
# a story depends on how the real one behaves.
packages=(qemu-system-x86 busybox-static kmod nvme-cli e2fsprogs xfsprogs btrfs-progs iproute2 util-linux mount)
guest_programs=(
    /bin/kmod /usr/sbin/nvme
    /sbin/mke2fs /sbin/e2fsck /sbin/resize2fs /sbin/dumpe2fs /sbin/tune2fs /sbin/mkfs.xfs /sbin/xfs_repair
    /usr/sbin/xfs_growfs /usr/sbin/xfs_io /bin/btrfs /sbin/mkfs.btrfs
    /bin/ip /bin/ss /sbin/tc
    /bin/mount /bin/umount /bin/findmnt /bin/lsblk /sbin/blkid /sbin/blockdev /sbin/losetup /sbin/fsfreeze
)
# Loaded at boot: devices of the virtual machine, and the initiator this is all about.
boot_modules=(virtio_pci virtio_net virtio_blk virtio_console virtio_rng nvme-fabrics nvme-tcp)
# There on demand: file systems, delay and loss, killing sockets, and the kernel's own target as an independent peer.
other_modules=(ext4 xfs btrfs loop crc32c_generic sch_netem sch_tbf tcp_diag inet_diag brd configfs nvmet nvmet-tcp)

prepare_into() { # SUITE DIRECTORY
    local suite=$1 dir=$2 root=$2/root work=$2/work kernel release deb
    mkdir -p "$root" "$work"
    private_apt "$work" bookworm bookworm-backports
    local -a release_option=()
    # By itself apt takes bookworm's with its security updates, and nothing from the backports.
    [ "$suite" = bookworm ] || release_option=(-o "APT::Default-Release=$suite")
    kernel=$(kernel_package "${release_option[@]}")
    say "downloading qemu, the guest's programs and $kernel (about 110 MB)"
    apt-get "${apt[@]}" --no-install-recommends --download-only -y install "${packages[@]}"
    (cd "$work/archives" && apt-get "${apt[@]}" download "$kernel")
    say "unpacking"
    for deb in "$work"/archives/*.deb; do
        case ${deb##*/} in
        # Pulled in by maintainer scripts and plugins only; nothing here runs them.
        perl* | libperl* | python3* | libpython3* | iso-codes_* | dpkg_* | debconf_* | passwd_*) continue ;;
        linux-image-*) dpkg-deb -x "$deb" "$work/kernel" ;;
        *) dpkg-deb -x "$deb" "$root" ;;
        esac
    done
    find "$work/archives" -name '*.deb' -printf '%f\n' | sort >"$dir/packages"
    release=$(ls "$work/kernel/lib/modules")
    cp "$work/kernel/boot/vmlinuz-$release" "$dir/vmlinuz"
    say "building the initramfs for $release"
    initramfs "$root" "$work/kernel" "$release" "$work/guest"
    pack_tree "$root/bin/busybox" "$work/guest" >"$dir/initramfs.gz"
    # How to run qemu from here, for the harness and for a curious reader.
    cat >"$dir/qemu" <<EOF
#!/bin/sh
root=\$(dirname "\$(readlink -f "\$0")")/root
export QEMU_MODULE_DIR="\$root/usr/lib/x86_64-linux-gnu/qemu"
exec "\$root/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" --library-path "$(library_path "$root" | sed "s#$root#\$root#g")" \\
    "\$root/usr/bin/qemu-system-x86_64" -L "\$root/usr/share/qemu" -L "\$root/usr/share/seabios" "\$@"
EOF
    chmod +x "$dir/qemu"
    "$dir/qemu" --version >/dev/null
    rm -rf "$work" "$root"/usr/share/{doc,man,locale,lintian,bash-completion}
}

initramfs() { # ROOT KERNEL RELEASE GUEST
    local root=$1 kernel=$2 release=$3 guest=$4 program file module
    mkdir -p "$guest"/{bin,sbin,usr/bin,usr/sbin,lib64,proc,sys,dev,run,tmp,mnt,etc/nvme,lab/bin,root}
    unpacked "$root" /sbin/depmod -b "$kernel" "$release"
    unpacked "$root" /sbin/modprobe -d "$kernel" -S "$release" --show-depends -a "${boot_modules[@]}" "${other_modules[@]}" |
        sed -n 's/^insmod \([^ ]*\).*/\1/p' | sort -u >"$guest/modules"
    while read -r module; do
        file=$guest${module#"$kernel"}
        mkdir -p "$(dirname "$file")"
        case $module in
        # Newer kernels come with compressed modules; the archive is compressed as a whole.
        *.xz) "$root/bin/busybox" xzcat "$module" >"${file%.xz}" ;;
        *) cp "$module" "$file" ;;
        esac
    done <"$guest/modules"
    rm "$guest/modules"
    cp "$kernel/lib/modules/$release"/modules.{builtin,builtin.modinfo,order} "$guest/lib/modules/$release/"
    unpacked "$root" /sbin/depmod -b "$guest" "$release"
    printf '%s\n' "${boot_modules[@]}" >"$guest/lab/boot-modules"

    for program in "${guest_programs[@]}"; do
        [ -e "$root$program" ] || [ -L "$root$program" ] || { say "no $program in the packages"; return 1; }
        cp "$(resolve "$root" "$program")" "$guest$program"
        # With /lib/x86_64-linux-gnu and its like in place the guest's loader finds everything by its default path.
        "$(resolve "$root" /lib64/ld-linux-x86-64.so.2)" --library-path "$(library_path "$root")" --list "$(resolve "$root" "$program")" |
            sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p' | while read -r file; do
            mkdir -p "$guest/lib/x86_64-linux-gnu"
            cp -L "$file" "$guest/lib/x86_64-linux-gnu/${file##*/}"
        done
    done
    cp "$root/bin/busybox" "$guest/bin/"
    cp -L "$root/lib64/ld-linux-x86-64.so.2" "$guest/lib64/"
    for program in modprobe lsmod insmod rmmod depmod modinfo; do ln -s /bin/kmod "$guest/sbin/$program"; done
    for program in ext2 ext3 ext4; do ln -s mke2fs "$guest/sbin/mkfs.$program"; done
    for program in ext2 ext3 ext4; do ln -s e2fsck "$guest/sbin/fsck.$program"; done
    cp "$root/etc/mke2fs.conf" "$guest/etc/"
    printf 'root:x:0:0:root:/root:/bin/sh\n' >"$guest/etc/passwd"
    printf 'root:x:0:\n' >"$guest/etc/group"
    cp "$here/guest/init" "$guest/init"
    chmod +x "$guest/init"
}

pack_tree() { # BUSYBOX TREE: an archive the kernel unpacks, on standard output
    # Not `--owner 0:0`, which this cpio lacks; the guest runs as root and minds no owners.
    (cd "$2" && find . -mindepth 1 | LC_ALL=C sort | "$1" cpio -o -H newc 2>/dev/null) | gzip -1 -n
}

prepare() { # SUITE
    local key
    key=$1-$(cat "$here"/{linux-host.sh,debian.sh,guest/init} | sha256sum | cut -c 1-16)
    once linux-host "$key" prepare_into "$1"
}

pack() { # NAME=FILE...
    local parts key archive work pair name file library
    parts=$(prepare bookworm)
    key=$({ cat "$here/linux-host.sh"; for pair in "$@"; do echo "${pair%%=*}"; cat "${pair#*=}"; done; } | sha256sum | cut -c 1-32)
    archive=$cache/programs/$key.gz
    if [ ! -f "$archive" ]; then
        mkdir -p "$cache/programs"
        work=$(mktemp -d "$cache/programs/.tmp.XXXXXX")
        trap 'rm -rf "$work"' EXIT
        for pair in "$@"; do
            name=${pair%%=*} file=${pair#*=}
            mkdir -p "$work/tree/lab/bin" "$work/tree/lab/programs/$name"
            cp "$file" "$work/tree/lab/programs/$name/$name"
            # Debug information is most of the size, and the guest has little memory.
            strip --strip-debug "$work/tree/lab/programs/$name/$name"
            # The libraries the program was linked with come along, in a place of their own: the guest's C library
            # may be an older one.
            for library in $(ldd "$file" | grep -o '/[^ ]*'); do cp -L "$library" "$work/tree/lab/programs/$name/"; done
            cat >"$work/tree/lab/bin/$name" <<EOF
#!/bin/sh
d=/lab/programs/$name
exec \$d/ld-linux-x86-64.so.2 --argv0 $name --library-path \$d \$d/$name "\$@"
EOF
            chmod +x "$work/tree/lab/bin/$name"
        done
        pack_tree "$parts/root/bin/busybox" "$work/tree" >"$work/archive"
        mv "$work/archive" "$archive"
        rm -rf "$work"
        trap - EXIT
        # Every build of a program makes a new archive; the last few are enough.
        find "$cache/programs" -maxdepth 1 -name '*.gz' -mtime +2 -delete
    fi
    echo "$archive"
}

case ${1:-} in
'') prepare bookworm ;;
bookworm | bookworm-backports) prepare "$1" ;;
pack) shift && pack "$@" ;;
*) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2 && exit 2 ;;
esac
