# shellcheck shell=bash
# The disk of a virtual machine whose init is systemd: Debian as it is installed
# on a host, small, with libvirt's driver for QEMU. To be sourced after host.sh.
# What changes with the project's source is in its initial ram disk instead.

SERVICE_PACKAGES=(systemd systemd-sysv udev kmod strace libvirt-daemon-driver-qemu)
SERVICE_DISK_RECIPE=1 # raise it when the functions below put something else on the disk

# Units that such a machine does not need, and which take time to start.
SERVICE_MASKED=(serial-getty@.service getty@.service systemd-udev-settle.service
    systemd-timesyncd.service systemd-hwdb-update.service systemd-pcrmachine.service
    e2scrub_reap.service fstrim.timer dpkg-db-backup.timer apt-daily.timer apt-daily-upgrade.timer
    libvirtd.service libvirtd.socket virtlogd.socket virtlogd-admin.socket virtqemud.socket)

# install_debian TAR: from the mirror and with the keys of the other parts.
install_debian() {
    local tar=$1 list
    list=$(IFS=, && printf '%s' "${SERVICE_PACKAGES[*]}")
    mmdebstrap --variant=essential --include="$list" \
        --aptopt='APT::Install-Recommends "false"' --dpkgopt='path-exclude=/usr/share/{doc,locale}/*' \
        --format=tar "$DEBIAN_RELEASE" "$tar" "$PACKAGE_LISTS/debian.sources"
}

# prepare_root ROOT
prepare_root() {
    local root=$1 units=$1/etc/systemd/system unit
    mkdir -p "$root/host" "$root/nested"
    for unit in "${SERVICE_MASKED[@]}"; do
        ln -sf /dev/null "$units/$unit"
    done
    ln -sf /usr/lib/systemd/system/multi-user.target "$units/default.target"
    install -m 755 "$SCRIPTS/guest/service-agent" "$root/usr/local/sbin/agent"
    cat >"$units/agent.service" <<'END'
[Unit]
Description=Commands from the second serial port
[Service]
ExecStart=/usr/local/sbin/agent
Restart=always
END
    mkdir -p "$units/multi-user.target.wants"
    ln -s ../agent.service "$units/multi-user.target.wants/agent.service"
    printf '%032x\n' 1 >"$root/etc/machine-id" # else the first boot is a special one
    printf '%s\n' '[Journal]' 'Storage=volatile' 'RateLimitBurst=0' >"$root/etc/systemd/journald.conf"
}

# make_service_disk TAR DIR: files belong to who they belong to, also where this runs
# with no privileges.
make_service_disk() {
    local tar=$1 dir=$2
    mkdir "$dir/root"
    tar -C "$dir/root" --exclude='./dev/*' -xf "$tar"
    prepare_root "$dir/root"
    PATH=$PATH:/usr/sbin:/sbin mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$dir/root" "$dir/disk" 1G
    rm -rf "$dir/root" "$tar"
}
