# What the scripts beside this one share, which unpack Debian packages without installing them. To be sourced.
#
# XDG_CACHE_HOME moves the cache. MAYASTOR_LAB_DEBIAN_MIRROR names another mirror; debian-security must be beside it.

cache=${XDG_CACHE_HOME:-$HOME/.cache}/mayastor-lab
mirror=${MAYASTOR_LAB_DEBIAN_MIRROR:-http://deb.debian.org/debian}

say() {
    local script=${0##*/}
    echo "${script%.sh}: $*" >&2
}

# Sets `apt` to options for lists, caches and a package status of its own, and reads the lists.
private_apt() { # DIRECTORY SUITE [SUITE-TO-ASK-FOR-BY-NAME...]
    local dir=$1 suite=$2 more
    shift 2
    mkdir -p "$dir/lists/partial" "$dir/archives/partial"
    # With an empty status nothing counts as installed, so that every library comes along: what is unpacked does not
    # depend on the machine, and goes on working when the machine's packages change.
    : >"$dir/status"
    local signed="[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    {
        echo "deb $signed $mirror $suite main"
        echo "deb $signed $mirror $suite-updates main"
        echo "deb $signed ${mirror%/debian}/debian-security $suite-security main"
        for more in "$@"; do echo "deb $signed $mirror $more main"; done
    } >"$dir/sources.list"
    apt=(-qq -o "Dir::Etc::SourceList=$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State=$dir" -o "Dir::State::Lists=$dir/lists" -o "Dir::State::status=$dir/status" -o "Dir::Cache=$dir"
        -o APT::Sandbox::User= -o Debug::NoLocking=1 -o Acquire::Languages=none -o Acquire::Retries=3
        -o Dpkg::Use-Pty=0)
    say "reading Debian's package lists"
    # Without the option a mirror that cannot be reached is a warning, and the failure comes later with other words.
    apt-get "${apt[@]}" -o APT::Update::Error-Mode=any update
}

# Prints the package of the newest cloud kernel.
kernel_package() { # [APT-OPTION...]
    local found
    found=$(apt-cache "${apt[@]}" "$@" --no-all-versions show linux-image-cloud-amd64 |
        sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p')
    [ -n "$found" ] || { say "no package linux-image-cloud-amd64 at $mirror"; return 1; }
    echo "$found"
}

# Follows links as they look from inside ROOT: Debian's are absolute here and there.
resolve() { # ROOT PATH
    local root=$1 path=$2 target
    while [ -L "$root$path" ]; do
        target=$(readlink "$root$path")
        case $target in
        /*) path=$target ;;
        *) path=$(dirname "$path")/$target ;;
        esac
    done
    echo "$root$path"
}

library_path() { # ROOT
    find "$1/lib" "$1/usr/lib" -name '*.so.*' -printf '%h\n' | sort -u | paste -sd:
}

# Runs a program of the unpacked packages with the loader and libraries unpacked beside it.
unpacked() { # ROOT PROGRAM [ARGUMENT...]
    local root=$1 program=$2
    shift 2
    "$(resolve "$root" /lib64/ld-linux-x86-64.so.2)" --argv0 "${program##*/}" --library-path "$(library_path "$root")" \
        "$(resolve "$root" "$program")" "$@"
}

# Prints FOLDER/KEY of the cache. Where it is missing, COMMAND makes it: it is called with an empty directory as its last
# argument, and what it says goes to standard error. The folder appears by one rename, so it is there as a whole or not at
# all, and a repeat only looks.
once() { # FOLDER KEY COMMAND...
    local folder=$cache/$1 key=$2
    shift 2
    if [ ! -d "$folder/$key" ]; then
        command -v apt-get dpkg-deb >/dev/null || { say "this needs a Debian machine (apt-get, dpkg-deb)"; return 1; }
        mkdir -p "$folder"
        exec 9>"$folder/lock"
        flock 9
        if [ ! -d "$folder/$key" ]; then
            # Under the lock nobody is at work in these: runs that were cut off left them.
            rm -rf "$folder"/.tmp.*
            # Not local: the trap runs when this function is over.
            once_temporary=$(mktemp -d "$folder/.tmp.XXXXXX")
            trap 'rm -rf "$once_temporary"' EXIT
            "$@" "$once_temporary" >&2
            chmod 755 "$once_temporary"
            mv -T "$once_temporary" "$folder/$key"
            trap - EXIT
            say "ready in $folder/$key ($(du -sh "$folder/$key" | cut -f 1))"
            # What older trees made; one that is still wanted is made again in seconds.
            find "$folder" -mindepth 1 -maxdepth 1 -type d -mtime +14 ! -name "$key" -exec rm -rf {} +
        fi
        flock -u 9
    fi
    echo "$folder/$key"
}
