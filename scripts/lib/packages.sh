# shellcheck shell=bash
# Packages of Debian's trixie and trixie-backports, on any Debian release: apt with separate
# lists, sources and cache, and the mirror of the system's apt configuration. Packages are
# unpacked, not installed. To be sourced after common.sh.

DEBIAN_RELEASE=trixie

# --- The mirror and its keyring ---

# apt itself reads its configuration, in all formats and with all options.
debian_sources() {
    # shellcheck disable=SC2016 # fields of apt
    apt-get indextargets --format '$(REPO_URI) $(SOURCESENTRY) $(RELEASE)' \
        'Created-By: Packages' 'Component: main' "$@"
}

# Prints "URI FILE:LINE" of the entry for Debian's main archive.
system_mirror() {
    local codename sources
    # Origin and label are known once the system has fetched its package lists ...
    sources=$(debian_sources 'Origin: Debian' 'Label: Debian')
    if [[ -z $sources ]]; then
        # ... otherwise select by the name of the release.
        codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-stable}")
        sources=$(debian_sources --no-release-info)
        sources=$(grep " $codename\$" <<<"$sources" || grep -E ' (old)?stable$' <<<"$sources") || true
    fi
    awk '!/^cdrom:/ { print $1, $2; exit }' <<<"$sources"
}

# Prints the keyring that the entry FILE:LINE names, if any; apt's default keys apply otherwise.
keyring_of_entry() {
    local file=${1%:*}
    sed -nE 's/^Signed-By:[[:space:]]*(\/[^[:space:]]+).*/\1/Ip
             s/^deb .*signed-by=(\/[^], ]+).*/\1/Ip' "$file" | head -n 1
}

write_sources() {
    local mirror=$1 keyring=$2 suite
    for suite in "$DEBIAN_RELEASE" "$DEBIAN_RELEASE-backports"; do
        printf '%s\n' 'Types: deb' "URIs: $mirror" "Suites: $suite" 'Components: main' \
            'Architectures: amd64' 'Targets: Packages' ${keyring:+"Signed-By: $keyring"} ''
    done
}

# --- apt with a private state ---

# Options that override the system's configuration, which still applies otherwise (proxies,
# credentials, timeouts).
write_apt_conf() {
    cat <<'END'
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
APT::Architecture "amd64";
APT::Default-Release "";
APT::Get::Assume-Yes "true";
APT::Install-Recommends "false";
APT::Sandbox::User "root"; // otherwise root's downloads need a world-accessible directory
APT::Update::Error-Mode "any";
Acquire::GzipIndexes "true";
Acquire::Languages "none";
Acquire::Retries "3";
Debug::NoLocking "true"; // the lock of the cache suffices
END
}

# private_apt DIR PROGRAM ARGUMENT...: apt-get or apt-cache on the lists in DIR.
private_apt() {
    local dir=$1 program=$2
    shift 2
    "$program" --config-file "$dir/apt.conf" \
        -o "Dir::State=$dir/state" -o "Dir::State::status=$dir/status" -o "Dir::Cache=$dir/cache" \
        -o Dir::Cache::pkgcache=pkgcache.bin -o Dir::Cache::srcpkgcache=srcpkgcache.bin \
        -o "Dir::Etc::SourceList=$dir/debian.sources" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
        "$@"
}

# packages_for DIR PACKAGE: prints PACKAGE and all its dependencies, as NAME=VERSION.
packages_for() {
    private_apt "$1" apt-get --simulate --target-release "$DEBIAN_RELEASE-backports" install "$2" |
        sed -nE 's/^Inst ([^ ]+) \(([^ ]+) .*/\1=\2/p'
}

# Prints the kernel source packages that are recent enough, newest first, as NAME=VERSION.
linux_sources() {
    local dir=$1 name
    private_apt "$dir" apt-cache search --names-only '^linux-source-([7-9]|[1-9][0-9])\.' |
        cut -d ' ' -f 1 | sort -rV |
        while read -r name; do packages_for "$dir" "$name" | grep "^$name="; done
}

# Writes DIR/parts: for each part of the test bed a line with its packages.
choose_packages() {
    local dir=$1
    {
        printf 'qemu %s\n' "$(packages_for "$dir" qemu-system-x86 | xargs)"
        printf 'busybox %s\n' "$(packages_for "$dir" busybox-static | grep '^busybox-static=')"
        printf 'stock-kernel %s\n' "$(packages_for "$dir" linux-image-cloud-amd64 |
            grep -E '^linux-(image|binary|base|modules)-[0-9]' | xargs)"
        printf 'linux-sources %s\n' "$(linux_sources "$dir" | xargs)"
    } >"$dir/parts"
}

# --- The package lists, an entry of the cache ---

fill_package_lists() {
    local mirror=$1 keyring=$2 dir=$3
    mkdir -p "$dir"/state/lists/partial "$dir"/cache/archives/partial
    : >"$dir/status"
    write_sources "$mirror" "$keyring" >"$dir/debian.sources"
    write_apt_conf >"$dir/apt.conf"
    step "Reading the package lists of $DEBIAN_RELEASE from $mirror" private_apt "$dir" apt-get update
    step "Choosing packages" choose_packages "$dir"
}

# Sets PACKAGE_LISTS. The lists do not change until "refresh", so that a machine gets the
# same versions each time.
need_package_lists() {
    [[ -z ${PACKAGE_LISTS:-} ]] || return 0
    local mirror entry keyring=
    command -v apt-get >/dev/null || die "apt-get is not installed" \
        "the test bed consists of Debian packages: use a Debian 12 or 13 machine"
    read -r mirror entry < <(system_mirror) || true
    [[ -n ${mirror:-} ]] || die "apt's configuration names no mirror of Debian" \
        "see: apt-get indextargets; add one to /etc/apt/sources.list.d"
    keyring=$(keyring_of_entry "$entry")
    cache_make package-lists "$(key_of <<<"$DEBIAN_RELEASE $mirror $keyring")" \
        fill_package_lists "$mirror" "$keyring"
    PACKAGE_LISTS=$CACHED
}

# part_packages PART: prints the packages of PART, NAME=VERSION per line.
part_packages() {
    local packages
    packages=$(sed -n "s/^$1 //p" "$PACKAGE_LISTS/parts")
    [[ -n $packages ]] || die "the mirror has no packages for $1" \
        "looked in: $PACKAGE_LISTS/debian.sources" "to fetch the lists again: scripts/testbed refresh"
    tr ' ' '\n' <<<"$packages"
}

download_and_unpack() {
    local dir=$1 deb
    shift
    mkdir -p "$dir"
    cd "$dir" || return
    private_apt "$PACKAGE_LISTS" apt-get download "$@" || {
        printf 'if a version is no longer available: scripts/testbed refresh\n'
        return 1
    }
    for deb in ./*.deb; do
        dpkg-deb --extract "$deb" .
        rm "$deb"
    done
}

# unpack_packages TEXT DIR NAME=VERSION...
unpack_packages() {
    local text=$1
    shift
    step "Fetching $text" download_and_unpack "$@"
}

# unpack_part PART DIR: unpacks all packages of PART into DIR.
unpack_part() {
    local part=$1 dir=$2 packages
    packages=$(part_packages "$part")
    # shellcheck disable=SC2086 # one word for each package
    unpack_packages "the packages of $part" "$dir" $packages
}

# make_part PART COMMAND [INPUT...]: cache_make with a key of the packages and INPUT.
make_part() {
    local part=$1 command=$2 packages key
    shift 2
    need_package_lists
    packages=$(part_packages "$part")
    key=$(key_of <<<"$packages $*")
    cache_make "$part" "$key" "$command"
}
