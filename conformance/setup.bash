# What the executables here share: the peers' programs. Source it; every function does nothing where there is nothing to do.
. "$(dirname "${BASH_SOURCE[0]}")/../packaging/setup.bash"

GO_PROGRAMS=$CACHE/go # PROGRAM-VERSION/PROGRAM, so that two versions can be beside each other
CNI_PLUGINS=github.com/containernetworking/plugins/plugins

# go_program PROGRAM PACKAGE VERSION [GO BUILD FLAG...]: build it from Go's module proxy; print where it is.
# In a module of its own, not by `go install`: that asks which other versions there are, and not every proxy says so.
go_program() {
    local program=$1 package=$2 version=$3 directory
    shift 3
    directory=$GO_PROGRAMS/$program-$version
    if [ ! -x "$directory/$program" ]; then
        command -v go >/dev/null || die "needs Go 1.21 or newer, to build $package@$version"
        say "Building $program $version ..." >&2
        rm -rf "$directory"
        mkdir -p "$directory/module"
        (
            cd "$directory/module"
            export GOFLAGS='' GOTOOLCHAIN=auto GOWORK=off
            go mod init conformance && go get "$package@$version" && go build -o "$directory/$program" "$@" "$package"
        ) 2>&1 | sed '/^go: \(added\|creating\)/d' >&2 || die "cannot build $package@$version"
    fi
    printf '%s\n' "$directory/$program"
}

# cni_plugins DIRECTORY NAME...: put these of containernetworking/plugins v1.9.1 into a directory, by their own names.
cni_plugins() {
    local directory=$1 name folder program
    shift
    mkdir -p "$directory"
    for name in "$@"; do
        case $name in
        portmap | firewall | tuning | bandwidth) folder=meta ;;
        host-local | static) folder=ipam ;;
        *) folder=main ;;
        esac
        program=$(go_program "$name" "$CNI_PLUGINS/$folder/$name" v1.9.1)
        ln -sf "$program" "$directory/$name"
    done
}

# pip_command: install the project with pip, as its users do, and print where the command is.
pip_command() {
    local venv=$CACHE/pip stamp=$CACHE/pip/.sources sources
    sources=$(sources_checksum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$sources" ]; then
        say "Installing the project with pip ..." >&2
        rm -rf "$venv"
        /usr/bin/python3 -m venv "$venv"
        pip_install "$venv" "$PROJECT" >&2
        printf '%s' "$sources" >"$stamp"
    fi
    printf '%s\n' "$venv/bin/quantum-nat"
}

# container_root: print the archive with what the containers have: busybox, and the server of runtimes/server.
container_root() {
    local root=$CACHE/container-root archive=$CACHE/container-root.tar source=$PROJECT/conformance/runtimes/server/main.go
    if [ ! -f "$archive" ] || [ "$source" -nt "$archive" ]; then
        apt_install busybox-static >&2
        rm -rf "$root"
        mkdir -p "$root"/{bin,etc,proc,sys,dev,tmp}
        CGO_ENABLED=0 go build -trimpath -ldflags=-s -o "$root/bin/server" "$source"
        cp /bin/busybox "$root/bin/"
        ln -s busybox "$root/bin/sh"
        ln -s busybox "$root/bin/sleep"
        tar -C "$root" -cf "$archive" .
    fi
    printf '%s\n' "$archive"
}

# netavark_program VERSION: build it from crates.io; print where it is. Nothing where there is no cargo that could.
netavark_program() {
    local directory=$CACHE/rust/netavark-$1 program=$CACHE/rust/netavark-$1/bin/netavark
    if [ ! -x "$program" ]; then
        if ! command -v cargo >/dev/null; then
            say "netavark is left out: it takes cargo 1.88 or newer to build it" >&2
            return 0
        fi
        apt_install protobuf-compiler >&2
        say "Building netavark $1 (some minutes) ..." >&2
        nice cargo install --quiet --locked --root "$directory" --version "$1" netavark >&2 || {
            say "netavark is left out: it cannot be built here" >&2
            return 0
        }
    fi
    printf '%s\n' "$program"
}

# own_go_program NAME: build the program in conformance/NAME, a Go module, where it has changed; print where it is.
own_go_program() {
    local source=$PROJECT/conformance/$1 program=$GO_PROGRAMS/$1
    command -v go >/dev/null || die "needs Go 1.21 or newer, to build conformance/$1"
    mkdir -p "$GO_PROGRAMS"
    GOFLAGS='' GOTOOLCHAIN=auto GOWORK=off go build -C "$source" -trimpath -o "$program" . >&2 || die "cannot build conformance/$1"
    printf '%s\n' "$program"
}
