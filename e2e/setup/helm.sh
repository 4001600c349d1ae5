#!/usr/bin/env bash
# Makes a Python with Helm's own library once, in the user's cache folder, and prints its path.
#
# The wheel helm-python-sdk holds Helm as a library, so no helm program is needed. Nothing is installed into the
# machine's Python; python3-venv is, where it is missing.
set -euo pipefail

readonly VERSION=0.2.2
readonly CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/mayastor-lab
readonly HOME_DIR=$CACHE/helm-$VERSION

say() { printf 'helm: %s\n' "$*" >&2; }

mkdir -p "$CACHE"
exec 9>"$HOME_DIR.lock"
flock 9
if [[ ! -x $HOME_DIR/bin/python ]]; then
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        say "installing by apt-get: python3-venv: a Python of its own for Helm's library"
        root=()
        (( EUID == 0 )) || root=(sudo)
        "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends install python3-venv >&2
    fi
    say "downloading helm-python-sdk $VERSION (75 MB, once)"
    rm -rf "$HOME_DIR.work"
    trap 'rm -rf "$HOME_DIR.work"' EXIT
    python3 -m venv "$HOME_DIR.work"
    "$HOME_DIR.work/bin/python" -m pip install --quiet --disable-pip-version-check "helm-python-sdk==$VERSION" >&2
    # Only what is whole gets the name; the interpreter does not care where it lies.
    mv "$HOME_DIR.work" "$HOME_DIR"
fi
echo "$HOME_DIR/bin/python"
