# What packaging/build, packaging/quickstart and tests/run share: packages, the virtual environment, cnitool.
# Source it; every function does nothing where there is nothing to do.

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$PROJECT/.venv
CACHE=$PROJECT/.cache

say() { printf '%s\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# apt_install PACKAGE...: install those that are missing.
apt_install() {
    local missing=() package
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || die "needs ${missing[*]}: install them as root (apt-get install ${missing[*]})"
    say "Installing ${missing[*]} ..."
    apt-get update -qq >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# unpacked PACKAGE: unpack Debian's package, which would start a service if it were installed; print where it is.
unpacked() {
    local package=$1 directory=$CACHE/debian/$1
    if [ ! -d "$directory" ]; then
        say "Unpacking $package ..." >&2
        rm -rf "$directory.new"
        mkdir -p "$directory.new"
        (
            cd "$CACHE/debian"
            apt-get download -qq "$package" || { apt-get update -qq && apt-get download -qq "$package"; }
        ) >/dev/null 2>&1 || die "cannot download Debian's package $package"
        dpkg-deb -x "$CACHE/debian/$package"_*.deb "$directory.new"
        mv "$directory.new" "$directory"
    fi
    printf '%s\n' "$directory"
}

# make_venv: a virtual environment in .venv with the project and what builds and tests it, made again when pyproject.toml or
# the lock changes.
make_venv() {
    local wanted stamp=$VENV/.quantum-nat
    apt_install python3 python3-venv libnftables1
    wanted=$(cat "$PROJECT/pyproject.toml" "$PROJECT/packaging/requirements.lock" | sha256sum)
    [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || return 0
    say "Making the virtual environment .venv ..."
    [ -x "$VENV/bin/python" ] || /usr/bin/python3 -m venv "$VENV"
    pip_install "$VENV" --editable "$PROJECT"
    printf '%s' "$wanted" >"$stamp"
}

# pip_install VENV ARGUMENT...: what is locked, compared with its hashes, and then the project, built with what is locked. Wheels alone: a
# source would be built by what is not.
pip_install() {
    "$1/bin/pip" install --quiet --disable-pip-version-check --require-hashes --only-binary :all: --requirement "$PROJECT/packaging/requirements.lock"
    "$1/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-build-isolation "${@:2}"
}

# check_code: lint, format and types.
check_code() {
    "$VENV/bin/ruff" check "$PROJECT"
    "$VENV/bin/ruff" format --check "$PROJECT"
    (cd "$PROJECT" && "$VENV/bin/mypy")
}

# source_date: the time that everything built bears, in seconds since the epoch: SOURCE_DATE_EPOCH, or the last commit's.
source_date() {
    if [ -n "${SOURCE_DATE_EPOCH:-}" ]; then
        printf '%s\n' "$SOURCE_DATE_EPOCH"
    else
        git -C "$PROJECT" log -1 --format=%ct
    fi
}

# project_version: from the package.
project_version() { sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$PROJECT/cni_quantum_nat/version.py"; }

# sources_checksum: of all that what is built depends on.
sources_checksum() {
    (cd "$PROJECT" && find cni_quantum_nat packaging/*.py packaging/*.txt packaging/*.spec packaging/launcher packaging/build packaging/requirements.lock pyproject.toml \
        -type f ! -path '*/__pycache__/*' -print0 |
        sort -z | xargs -0 sha256sum | sha256sum)
}

# privately COMMAND [ARGUMENT...]: in a mount and network namespace of its own, with a fresh /run, and what libcni and
# containers' storage keep in /var/lib whatever they are told: what it makes there goes when it ends, however that is.
# UNSHARE_FLAGS are more flags for unshare.
privately() {
    local flags=(--mount --net ${UNSHARE_FLAGS:-})
    [ "$(id -u)" = 0 ] || flags=(--map-root-user "${flags[@]}")
    # shellcheck disable=SC2016
    unshare "${flags[@]}" sh -c '
        mount -t tmpfs none /run && mkdir /run/netns
        for directory in /var/lib/cni /var/lib/containers; do
            if mkdir -p "$directory" 2>/dev/null; then mount -t tmpfs none "$directory"; fi
        done
        exec "$@"' sh "$@"
}

# install_cnitool: cnitool v1.3.0 in .cache/bin from Go's module proxy, or else a stand-in over Debian's libcni.
install_cnitool() {
    local target=$CACHE/bin/cnitool
    [ -x "$target" ] && return 0
    mkdir -p "$CACHE/bin"
    say "Building cnitool ..."
    if command -v go >/dev/null &&
        GOBIN=$CACHE/bin timeout 300 go install github.com/containernetworking/cni/cnitool@v1.3.0 2>/dev/null; then
        return 0
    fi
    build_cnitool_of_debian "$target"
}

# build_cnitool_of_debian TARGET: Debian packages libcni, but not the tool.
build_cnitool_of_debian() {
    apt_install golang-go golang-github-appc-cni-dev
    GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE=$CACHE/go-build GOFLAGS='' \
        /usr/bin/go build -o "$1" "$PROJECT/packaging/cnitool/main.go"
}
