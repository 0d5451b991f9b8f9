# Fresh Debian systems for the scripts beside this one, which source it. Each is made once, by debootstrap, and kept in the cache; a script
# works in a copy.

cache=${WALDEN_TEST_CACHE:-/var/cache/walden-tests}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

# Ends the script where the one who runs it may not chroot.
need_root() {
    if [ "$(id -u)" != 0 ]; then
        echo "$1: skipped: only root may chroot" >&2
        [ "${CI:-}" != true ]
        exit
    fi
}

# Installs a package of the distribution for its program, if that is not there.
need_program() {
    command -v "$1" >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$2"
}

# Makes the directory ROOT a fresh Debian of a release: debian 12 ROOT.
debian() {
    local release=$1 root=$2 suite
    case $release in 11) suite=bullseye ;; 12) suite=bookworm ;; *) echo "Debian $release?" >&2; return 2 ;; esac
    local kept=$cache/debian-$release
    if [ ! -e "$kept/done" ]; then
        need_program debootstrap debootstrap
        rm -rf "$kept"
        mkdir -p "$kept"
        debootstrap --variant=minbase --include=sudo,ca-certificates "$suite" "$kept/root" "$mirror"
        touch "$kept/done"
    fi
    cp -a "$kept/root" "$root"
    # The machine's own names, sources and proxies are how it reaches a mirror.
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    cp -a /etc/hosts "$root/etc/hosts"
    cp -a /etc/apt/apt.conf.d/. "$root/etc/apt/apt.conf.d/"
}

# Runs a script in it, as root: inside ROOT 'commands'.
inside() { chroot "$1" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 bash -euc "$2"; }
