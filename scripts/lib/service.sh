# shellcheck shell=bash
# The disk of a virtual machine that is a host with systemd: Debian as it is
# installed, with QEMU and libvirt's driver for it. To be sourced after testbed.sh.
# What changes with the project's source is in its initial ram disk instead.

SERVICE_PACKAGES=(systemd systemd-sysv udev strace libvirt-daemon-driver-qemu)
SERVICE_DISK_RECIPE=1 # raise it when the functions below put something else on the disk
SERVICE_AGENT=$SCRIPTS/guest/service-agent

# Files that nobody reads there.
SERVICE_LEFT_OUT=(/usr/share/{doc,locale,man}/'*')

# Units that take time and are of no use there.
SERVICE_MASKED=(serial-getty@.service getty@.service systemd-logind.service e2scrub_reap.service
    e2scrub_all.timer fstrim.timer dpkg-db-backup.timer logrotate.timer)

# install_debian TAR NAME=VERSION...: from the mirror and with the keys of the other parts.
install_debian() {
    local tar=$1 options=() pattern packages
    shift
    for pattern in "${SERVICE_LEFT_OUT[@]}"; do
        options+=("--dpkgopt=path-exclude=$pattern")
    done
    packages=$(IFS=, && printf '%s' "$*")
    mmdebstrap --variant=essential --include="$packages" --aptopt='APT::Install-Recommends "false"' \
        "${options[@]}" --format=tar "$DEBIAN_RELEASE" "$tar" "$PACKAGE_LISTS/debian.sources"
}

write_agent_unit() {
    cat <<'END'
[Unit]
Description=Commands from the second serial port

[Service]
ExecStart=/usr/local/sbin/agent

[Install]
WantedBy=multi-user.target
END
}

# prepare_root ROOT: what a machine of the tests has besides Debian.
prepare_root() {
    local root=$1 units=$1/etc/systemd/system unit
    rm "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap" # SERVICE_LEFT_OUT is not for packages of tests
    mkdir -p "$root/host" "$units/multi-user.target.wants"
    for unit in "${SERVICE_MASKED[@]}"; do
        ln -sf /dev/null "$units/$unit"
    done
    ln -sf /usr/lib/systemd/system/multi-user.target "$units/default.target"
    install -m 755 "$SERVICE_AGENT" "$root/usr/local/sbin/agent"
    write_agent_unit >"$units/agent.service"
    ln -s ../agent.service "$units/multi-user.target.wants/agent.service"
    # The first boot of a system does more than any other one.
    printf '%032x\n' 1 >"$root/etc/machine-id"
    touch "$root/etc/.updated" "$root/var/.updated"
    printf '[Journal]\nStorage=volatile\nRateLimitBurst=0\n' >"$root/etc/systemd/journald.conf"
}

make_service_image() {
    local tar=$1 root=$2 disk=$3
    mkdir "$root"
    tar -C "$root" --exclude='./dev/*' -xf "$tar"
    prepare_root "$root"
    # No journal: what is written is forgotten when the machine ends.
    PATH=$PATH:/usr/sbin:/sbin mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$root" "$disk" 2G
}

# with_owners FUNCTION ARGUMENT...: files keep their owners, whoever runs this.
with_owners() {
    # shellcheck disable=SC2016 # for the other shell
    fakeroot bash -c 'for lib in common packages testbed service; do source "$0/lib/$lib.sh"; done; "$@"' \
        "$SCRIPTS" "$@"
}

# fill_service_disk PACKAGE... DIR
fill_service_disk() {
    local dir=${*: -1} packages=("${@:1:$#-1}")
    need_packages "Making a disk with systemd" mmdebstrap e2fsprogs fakeroot
    step "Installing Debian on a disk (some minutes)" install_debian "$dir/root.tar" "${packages[@]}"
    step "Writing the disk" with_owners make_service_image "$dir/root.tar" "$dir/root" "$dir/disk"
    rm -rf "$dir/root.tar" "$dir/root"
}

need_service_disk() {
    local packages key
    need_package_lists
    packages=$(part_packages qemu)
    key=$(cat - "$SERVICE_AGENT" <<<"$SERVICE_DISK_RECIPE ${SERVICE_PACKAGES[*]} ${SERVICE_MASKED[*]} \
        ${PACKAGE_LISTS##*/} $packages" | key_of)
    # shellcheck disable=SC2086 # one word for each package
    cache_make service-disk "$key" fill_service_disk "${SERVICE_PACKAGES[@]}" $packages
    export VUI_SERVICE_DISK=$CACHED/disk
}
