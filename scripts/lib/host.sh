# shellcheck shell=bash
# The disk of a virtual machine that is a host itself: with a QEMU of its own,
# and a kernel for the guest in it. To be sourced after testbed.sh.
# What changes with the project's source is in its initial ram disk instead.

HOST_FIRMWARE=(seabios/bios-256k.bin qemu/kvmvapic.bin qemu/linuxboot_dma.bin)
HOST_DISK_RECIPE=1 # raise it when the functions below put something else on the disk

# libraries_of TREE: what loads its QEMU, and what that is linked to.
libraries_of() {
    local lib=$1/usr/lib/x86_64-linux-gnu
    local loader=$lib/ld-linux-x86-64.so.2
    {
        printf '%s\n' "$loader"
        "$loader" --library-path "$lib" --list "$1/usr/bin/qemu-system-x86_64" |
            awk '$3 ~ /^\// { print $3 }'
    } | sort -u
}

# copy_qemu TREE TO: what a guest without display and network needs of it.
copy_qemu() {
    local tree=$1 to=$2 file lib=usr/lib/x86_64-linux-gnu
    mkdir -p "$to"/usr/{bin,share/qemu,share/seabios} "$to/$lib"
    cp "$tree/qemu-system-x86_64" "$to/"
    cp "$tree/usr/bin/qemu-system-x86_64" "$to/usr/bin/"
    libraries_of "$tree" | xargs cp -L -t "$to/$lib"
    for file in "${HOST_FIRMWARE[@]}"; do
        cp "$tree/usr/share/$file" "$to/usr/share/$file"
    done
    qemu_is_new_enough "$to/qemu-system-x86_64" ||
        die "the part of QEMU for the host's disk does not run" "see: $to/qemu-system-x86_64 -device help"
}

# make_image OUT DIR: a file system with what is in DIR, and no room for more.
make_image() {
    local out=$1 dir=$2 kibibytes files
    kibibytes=$(du -sk --apparent-size "$dir" | cut -f 1)
    files=$(find "$dir" | wc -l)
    # Each file has an inode and a last block; the rest is for the file system itself.
    # ext4 takes ext2 as well, which has no journal: of no use where nobody writes.
    PATH=$PATH:/usr/sbin:/sbin mke2fs -q -t ext2 -m 0 -N $((files + 16)) \
        -d "$dir" "$out" "$((kibibytes + files * 4 + kibibytes / 50 + 1024))k"
}

# fill_host_disk QEMU_TREE KERNEL DIR
fill_host_disk() {
    local tree=$1 kernel=$2 dir=$3
    need_packages "Making a disk" e2fsprogs
    copy_qemu "$tree" "$dir/root/qemu"
    cp "$kernel" "$dir/root/bzImage"
    step "Making the host's disk" make_image "$dir/disk" "$dir/root"
    rm -rf "$dir/root"
}

need_host_disk() {
    local parts key
    need_unpacked_qemu
    need_small_kernel
    parts=("$UNPACKED_QEMU" "${VUI_SMALL_KERNEL%/*}") # both are named by what they are made from
    key=$(key_of <<<"$HOST_DISK_RECIPE ${parts[*]##*/}")
    cache_make host-disk "$key" fill_host_disk "$UNPACKED_QEMU" "$VUI_SMALL_KERNEL"
    export VUI_HOST_DISK=$CACHED/disk
}
