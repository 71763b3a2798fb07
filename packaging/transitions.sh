# Shared by the scripts of the Debian package and the rpm.
program=/usr/lib/quantum-nat/quantum-nat
state=/run/cni/quantum-nat
wait_s=65 # a call waits no more than 60 for its lock

has_records() { [ -n "$(find "$state/attachments" -name '*.json' -print -quit 2>/dev/null)" ]; }

# refuse_older LAYOUT: a downgrade is refused while containers run whose table it would not understand: every ADD and DEL would fail.
refuse_older() {
    installed=$(cat /usr/lib/quantum-nat/layout 2>/dev/null || echo 0)
    if [ "$installed" -gt "$1" ] && has_records; then
        echo "quantum-nat: the installed version made rules that this one does not understand, and containers use them." >&2
        echo "Stop these containers first, or drain the node: quantum-nat list" >&2
        exit 1
    fi
}

# calls: what runtimes called of the version that has been replaced: its plugin, or its full program, which the loader beside it runs. That of the
# version that is in place now is named in its plugin.
calls() {
    for process in /proc/[0-9]*; do
        executed=$(readlink "$process/exe" 2>/dev/null) || continue
        case $executed in
        "$program (deleted)") ;;
        "${program%/*}"/_internal-*/*)
            internal=${executed#"${program%/*}/"}
            ! grep -q "${internal%%/*}" "$program" || continue
            ;;
        *) continue ;;
        esac
        ! grep -qz '^CNI_COMMAND=' "$process/environ" 2>/dev/null || echo "$process"
    done
}

# finish_calls: when this returns, the package manager removes the modules of the version before. The new version's program is in
# its place already, and every call from now on uses that one's; those that began before are waited for.
finish_calls() {
    attempts=$((wait_s * 20))
    while [ -n "$(calls)" ] && [ $attempts -gt 0 ]; do
        sleep 0.05
        attempts=$((attempts - 1))
    done
}

# forget: remove the records and the table, unless containers use them: their traffic would stop, at a moment that nobody chose.
forget() {
    if has_records; then
        echo "quantum-nat: containers run with its rules, so these and the records in $state stay until the next boot."
        echo "To remove them now, and cut the containers off: nft delete table inet quantum; rm -r $state"
        return 0
    fi
    rm -rf "$state"
    rmdir /run/cni 2>/dev/null || true
    if command -v nft >/dev/null; then # without it an empty table stays until the next boot
        nft delete table inet quantum 2>/dev/null || true
    fi
}
