# shellcheck shell=bash
# The disk of a virtual machine that is a host with systemd: a Debian installation with QEMU
# and libvirt's QEMU driver. To be sourced after testbed.sh. Programs of this project are in
# the initial RAM disk instead, because they change more often.

SERVICE_PACKAGES=(systemd systemd-sysv udev strace libvirt-daemon-driver-qemu)
SERVICE_DISK_RECIPE=1 # increment it when the functions below produce a different disk
SERVICE_AGENT=$SCRIPTS/guest/service-agent

# Files that are not needed there.
SERVICE_LEFT_OUT=(/usr/share/{doc,locale,man}/'*')

# Units that are not needed there and take time.
SERVICE_MASKED=(serial-getty@.service getty@.service systemd-logind.service e2scrub_reap.service
    e2scrub_all.timer fstrim.timer dpkg-db-backup.timer logrotate.timer)

# install_debian TAR NAME=VERSION...: uses the mirror and the keys of the other parts.
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

# prepare_root ROOT: adds the agent of the tests and the configuration of their machines.
prepare_root() {
    local root=$1 units=$1/etc/systemd/system unit
    rm "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap" # SERVICE_LEFT_OUT does not apply to packages that tests install
    mkdir -p "$root/host" "$units/multi-user.target.wants"
    for unit in "${SERVICE_MASKED[@]}"; do
        ln -sf /dev/null "$units/$unit"
    done
    ln -sf /usr/lib/systemd/system/multi-user.target "$units/default.target"
    install -m 755 "$SERVICE_AGENT" "$root/usr/local/sbin/agent"
    write_agent_unit >"$units/agent.service"
    ln -s ../agent.service "$units/multi-user.target.wants/agent.service"
    # Skips the additional work of a first boot.
    printf '%032x\n' 1 >"$root/etc/machine-id"
    touch "$root/etc/.updated" "$root/var/.updated"
    printf '[Journal]\nStorage=volatile\nRateLimitBurst=0\n' >"$root/etc/systemd/journald.conf"
}

make_service_image() {
    local tar=$1 root=$2 disk=$3
    mkdir "$root"
    tar -C "$root" --exclude='./dev/*' -xf "$tar"
    prepare_root "$root"
    # No journal: changes are discarded with the machine.
    PATH=$PATH:/usr/sbin:/sbin mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$root" "$disk" 2G
}

# with_owners FUNCTION ARGUMENT...: runs FUNCTION under fakeroot, which keeps file owners.
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
