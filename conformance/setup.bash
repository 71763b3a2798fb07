# Functions of the scripts here that build the peers' programs. Source it; each function does nothing if its result exists.
. "$(dirname "${BASH_SOURCE[0]}")/../packaging/setup.bash"

GO_PROGRAMS=$CACHE/go # PROGRAM-VERSION/PROGRAM, so that several versions can coexist
CNI_PLUGINS=github.com/containernetworking/plugins/plugins

# go_program PROGRAM PACKAGE VERSION [GO BUILD FLAG...]: build it from Go's module proxy; print its path.
# In a temporary module, not with `go install`, which requests the list of versions; not every proxy has it.
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

# cni_plugins DIRECTORY NAME...: install these plugins of containernetworking/plugins v1.9.1 into a directory.
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

# pip_command: install the project with pip, as users do, and print the path of the command.
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

# container_root: print the path of an archive with the containers' files: busybox, and the server of runtimes/server.
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

# netavark_program VERSION: build it from crates.io; print its path, or nothing if there is no suitable cargo.
netavark_program() {
    local directory=$CACHE/rust/netavark-$1 program=$CACHE/rust/netavark-$1/bin/netavark
    if [ ! -x "$program" ]; then
        if ! command -v cargo >/dev/null; then
            say "Leaving out netavark: cargo 1.88 or newer is needed to build it" >&2
            return 0
        fi
        apt_install protobuf-compiler >&2
        say "Building netavark $1 (some minutes) ..." >&2
        nice cargo install --quiet --locked --root "$directory" --version "$1" netavark >&2 || {
            say "Leaving out netavark: the build failed" >&2
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
