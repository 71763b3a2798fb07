# What the scripts of packaging, tests and conformance share: Debian's packages, the virtual environment, the checks of the code.
# Source it. Each function does nothing where there is nothing to do, and finishes what an interrupted run left half done.

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$PROJECT/.venv
CACHE=$PROJECT/.cache
PATH=$PATH:/usr/sbin:/sbin # where ip and nft are, and not on every user's path
export PYINSTALLER_CONFIG_DIR=$CACHE/pyinstaller # else ~/.cache/pyinstaller

say() { printf '%s\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Apt ignores Ctrl-C while it installs, and bash then goes on with the next command: this ends the script instead.
trap 'exit 130' INT

# at_exit COMMAND [ARGUMENT...]: run it when the script ends, however that is.
AT_EXIT=(hand_over)
at_exit() { AT_EXIT+=("$(printf '%q ' "$@")"); }
run_at_exit() {
    local command
    for command in "${AT_EXIT[@]}"; do eval "$command"; done
}
trap run_at_exit EXIT

# hand_over: give what root made in another user's checkout to that user, who could neither change nor remove it otherwise.
hand_over() {
    local owner
    owner=$(stat -c %u "$PROJECT")
    if [ "$(id -u)" = 0 ] && [ "$owner" != 0 ]; then
        find "$PROJECT" -xdev -path "$CACHE/roots" -prune -o -uid 0 -exec chown -h --reference="$PROJECT" {} +
    fi
}

# apt_install PACKAGE...: install those that are missing. Another apt's lock is waited for, an interrupted dpkg's work is finished.
apt_install() {
    local missing=() package
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "needs Debian's or Ubuntu's packages, and there is no apt-get here: ${missing[*]}"
    [ "$(id -u)" = 0 ] || die "needs packages that only root can install: sudo apt-get install ${missing[*]}"
    say "Installing ${missing[*]} ..."
    (
        export DEBIAN_FRONTEND=noninteractive
        dpkg --configure -a >/dev/null || exit
        apt-get update -qq >/dev/null || say "apt-get update failed: going on with the lists that are there." >&2
        apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 "${missing[@]}" >/dev/null
    ) || die "cannot install packages. Try it by hand: apt-get update && apt-get install ${missing[*]}"
}

# unpacked PACKAGE [ARCHITECTURE]: unpack Debian's package, which would start a service if it were installed, or is another machine's; print where it is.
unpacked() {
    local package=$1 architecture=${2:-$(dpkg --print-architecture)} directory new options=()
    directory=$CACHE/debian/$package
    if [ "$architecture" != "$(dpkg --print-architecture)" ]; then
        directory=$directory-$architecture
        # With lists of its own: this host's apt goes on knowing one architecture.
        options=(-o "APT::Architecture=$architecture" -o "APT::Architectures=$architecture" -o "Dir::State::Lists=$directory.new/lists" -o APT::Sandbox::User=root)
    fi
    new=$directory.new
    if [ ! -d "$directory" ]; then
        say "Unpacking $package ..." >&2
        rm -rf "$new"
        mkdir -p "$new/files" "$new/lists/partial"
        (cd "$new" && { apt-get download -qq "${options[@]}" "$package" || { apt-get update -qq "${options[@]}" && apt-get download -qq "${options[@]}" "$package"; }; }) >"$new/log" 2>&1 ||
            die "cannot download Debian's package $package:"$'\n'"$(cat "$new/log")"
        dpkg-deb -x "$new/$package"_*.deb "$new/files"
        mv "$new/files" "$directory"
        rm -rf "$new"
    fi
    printf '%s\n' "$directory"
}

# source_of PACKAGE VERSION FILE DIRECTORY: put a file of the sources of this upstream version of a Debian package into a directory. The archive
# comes from the mirrors that this host's packages come from, with the hash that their index gives.
source_of() {
    local place=$CACHE/sources parts=$CACHE/sources/sources.list.d options file
    say "Downloading the sources of $1 $2 ..." >&2
    rm -rf "$place"
    mkdir -p "$place/lists/partial" "$parts" "$4"
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        [ ! -f "$file" ] || sed 's/^deb /deb-src /; s/^Types:.*/Types: deb-src/' "$file" >"$parts/${file##*/}"
    done
    mv -T "$parts/sources.list" "$place/sources.list" 2>/dev/null || touch "$place/sources.list"
    options=(-qq -o "Dir::Etc::SourceList=$place/sources.list" -o "Dir::Etc::SourceParts=$parts" -o "Dir::State::Lists=$place/lists" -o APT::Sandbox::User=root)
    (
        cd "$place"
        apt-get "${options[@]}" update || true # not every mirror has sources, and one of them is enough
        version=$(apt-cache "${options[@]}" showsrc "$1" | sed -n 's/^Version: //p' | grep -F "$2-" | head -n 1)
        apt-get "${options[@]}" source --only-source --download-only --tar-only "$1=$version"
    ) >"$place/log" 2>&1 || die "cannot download the sources of Debian's package $1 $2: see $place/log"
    tar -xf "$place/$1_$2".orig.tar.* -C "$4" --strip-components=2 --wildcards "*/$3"
    rm -rf "$place"
}

# in_debian_12 SCRIPT [ARGUMENT...]: the release is built from Debian 12's CPython 3.11, for ARCHITECTURE (else this host's). On another system,
# or for another architecture, run the script in a root directory of Debian 12, have what it makes in dist/, and exit.
in_debian_12() {
    local script=$1 here architecture root
    apt_install python3
    here=$(dpkg --print-architecture)
    architecture=${ARCHITECTURE:-$here}
    root=$CACHE/roots/build-$architecture
    [ "$architecture" != "$here" ] || ! can_freeze || return 0
    [ "$(id -u)" = 0 ] || die "needs root: it builds in a root directory of Debian 12 for $architecture"
    apt_install debootstrap util-linux
    [ "$architecture" = "$here" ] || emulate "$architecture"
    if [ ! -d "$root" ]; then
        say "Making a root directory of Debian 12 to build in ..."
        mkdir -p "$CACHE/roots"
        rm -rf "$root.new"
        debootstrap --arch="$architecture" --variant=minbase --include=ca-certificates bookworm "$root.new" "${MIRROR:-http://deb.debian.org/debian}" \
            >"$root.log" || die "cannot make a root directory of Debian 12: see $root.log"
        mv "$root.new" "$root"
    fi
    SOURCE_DATE_EPOCH=$(source_date)
    export SOURCE_DATE_EPOCH
    mkdir -p "$root/project"
    find "$root/project" -mindepth 1 -maxdepth 1 ! -name .venv ! -name .cache ! -name dist -exec rm -rf {} +
    tar -C "$PROJECT" --exclude=./.git --exclude=./.venv --exclude=./.cache --exclude=./dist -cf - . | tar -C "$root/project" -xf -
    for file in /etc/resolv.conf /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
        [ ! -f "$file" ] || cp --dereference "$file" "$root$file" # mirrors, and who vouches for them
    done
    # shellcheck disable=SC2016
    unshare --mount --pid --fork --kill-child sh -c 'mount -t proc proc "$0/proc"; mount --rbind /dev "$0/dev"; exec chroot "$0" "$@"' \
        "$root" "/project/packaging/${script##*/}" "${@:2}"
    mkdir -p "$PROJECT/dist"
    if [ "$architecture" = "$here" ]; then
        cp -a "$root/project/dist/." "$PROJECT/dist"
    else # packages alone: dist/quantum-nat is a program for this host
        find "$root/project/dist" -maxdepth 1 -type f -name "*[-_]$architecture.*" -exec cp -a -t "$PROJECT/dist" {} +
    fi
    exit 0
}

# emulate ARCHITECTURE: have the kernel run its programs by QEMU, until this script ends. Where the host does that already, it stays so.
emulate() {
    local machine registry
    case $1 in
    amd64) machine=x86_64 ;;
    arm64) machine=aarch64 ;;
    *) die "builds for amd64 and arm64, and ARCHITECTURE is $1" ;;
    esac
    apt_install qemu-user-static
    registry=$(mktemp -d)
    mount -t binfmt_misc none "$registry" || die "the kernel has no binfmt_misc, by which it would run programs for $1"
    if [ -e "$registry/qemu-$machine" ]; then
        umount "$registry"
        rmdir "$registry"
        return 0
    fi
    at_exit sh -c "echo -1 >'$registry/qemu-$machine'"
    at_exit umount "$registry"
    at_exit rmdir "$registry"
    cat "/usr/lib/binfmt.d/qemu-$machine.conf" >"$registry/register"
}

# make_venv [runtime]: a virtual environment in .venv with the project and what builds and tests it, or only with what it needs to run.
# Made anew when pyproject.toml, a lock, CPython or the checkout's place changes, and when an earlier run was interrupted.
make_venv() {
    local kind=${1:-development} there
    apt_install python3 python3-venv libnftables1
    /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "needs CPython 3.11 or newer, and /usr/bin/python3 is $(/usr/bin/python3 --version)"
    there=$(cat "$VENV/.quantum-nat" 2>/dev/null || true)
    [ "$there" != "$(venv_stamp development)" ] || return 0
    [ "$kind" != runtime ] || [ "$there" != "$(venv_stamp runtime)" ] || return 0
    case $there in development*) kind=development ;; esac # a developer's stays one
    say "Making the virtual environment .venv ..."
    [ ! -e "$VENV" ] || [ -w "$VENV" ] || die ".venv belongs to $(stat -c %U "$VENV"): sudo rm -rf '$VENV', and run this again"
    rm -f "$VENV/.quantum-nat"
    /usr/bin/python3 -m venv --clear "$VENV"
    case $kind in
    runtime)
        pip_install_locked "$VENV" runtime.lock
        # As an editable installation, without what builds one.
        "$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' | {
            read -r packages
            printf '%s\n' "$PROJECT" >"$packages/quantum-nat.pth"
        }
        ;;
    development) pip_install "$VENV" --editable "$PROJECT" ;;
    esac
    venv_stamp "$kind" >"$VENV/.quantum-nat"
}

# venv_stamp KIND: what the contents of .venv depend on.
venv_stamp() {
    printf '%s in %s\n' "$1" "$PROJECT"
    /usr/bin/python3 -c 'import sys; print("CPython {}.{}".format(*sys.version_info))'
    (cd "$PROJECT" && sha256sum pyproject.toml packaging/*.lock)
}

# pip_install VENV ARGUMENT...: what is locked, and then the project, built with what is locked.
pip_install() {
    pip_install_locked "$1" requirements.lock
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation "${@:2}"
}

# pip_install_locked VENV LOCK: what a lock names, compared with its hashes. Wheels alone: a source would be built by what is not locked.
pip_install_locked() {
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: --requirement "$PROJECT/packaging/$2"
}

# check_code: lint, format and types.
check_code() {
    "$VENV/bin/ruff" check --cache-dir "$CACHE/ruff" "$PROJECT"
    "$VENV/bin/ruff" format --check --cache-dir "$CACHE/ruff" "$PROJECT"
    (cd "$PROJECT" && "$VENV/bin/mypy" --cache-dir "$CACHE/mypy")
}

# source_date: the time that everything built bears, in seconds since the epoch: SOURCE_DATE_EPOCH, or the last commit's; without git,
# that of the latest version in CHANGELOG.md.
source_date() {
    local day
    if [ -n "${SOURCE_DATE_EPOCH:-}" ]; then
        printf '%s\n' "$SOURCE_DATE_EPOCH"
    elif is_git_checkout; then
        project_git log -1 --format=%ct
    else
        day=$(sed -n 's/^## .* - \([0-9]\{4\}-[0-9][0-9]-[0-9][0-9]\)$/\1/p' "$PROJECT/CHANGELOG.md" | head -n 1)
        [ -n "$day" ] || die "CHANGELOG.md has no version with a date: export SOURCE_DATE_EPOCH=\$(date +%s), and run this again"
        date -ud "$day" +%s
    fi
}

# project_git ARGUMENT...: git in the checkout, also in one that another user owns.
project_git() { git -c safe.directory="$PROJECT" -C "$PROJECT" "$@"; }

is_git_checkout() {
    command -v git >/dev/null && [ "$(project_git rev-parse --show-toplevel 2>/dev/null)" = "$PROJECT" ]
}

# can_freeze: whether packaging/build can build the program here. packaging/launcher is written for one version of CPython.
can_freeze() { [ "$(/usr/bin/python3 -c 'import sys; print("{}.{}".format(*sys.version_info))')" = 3.11 ]; }

# project_version: from the package.
project_version() { sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$PROJECT/cni_quantum_nat/version.py"; }

# sources_checksum: of all that what is built depends on.
sources_checksum() {
    (cd "$PROJECT" && find cni_quantum_nat packaging/*.py packaging/*.txt packaging/*.spec packaging/launcher packaging/build packaging/requirements.lock pyproject.toml \
        \( -name '.*' -o -name __pycache__ \) -prune -o -type f -print0 |
        sort -z | xargs -0 sha256sum | sha256sum)
}

# make_root SUITE: a minimal installation of a Debian release, from the mirror that this host uses.
make_root() {
    local target=$CACHE/roots/$1
    [ ! -d "$target" ] || return 0
    apt_install debootstrap
    say "Making a root directory of $1 ..."
    mkdir -p "$CACHE/roots"
    rm -rf "$target.new"
    debootstrap --variant=minbase "$1" "$target.new" "${MIRROR:-http://deb.debian.org/debian}" >"$CACHE/roots/$1.log" ||
        die "cannot make a root directory of $1: see $CACHE/roots/$1.log"
    mv "$target.new" "$target"
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
