# shellcheck shell=bash
# The disk of a virtual machine that acts as a host: QEMU, and a kernel for the nested guest.
# To be sourced after testbed.sh. Programs of this project are in the initial RAM disk instead,
# because they change more often.

HOST_FIRMWARE=(seabios/bios-256k.bin qemu/kvmvapic.bin qemu/linuxboot_dma.bin)
HOST_DISK_RECIPE=1 # increment it when the functions below produce a different disk

# libraries_of TREE: prints the dynamic loader of its QEMU and the libraries it is linked to.
libraries_of() {
    local lib=$1/usr/lib/x86_64-linux-gnu
    local loader=$lib/ld-linux-x86-64.so.2
    {
        printf '%s\n' "$loader"
        "$loader" --library-path "$lib" --list "$1/usr/bin/qemu-system-x86_64" |
            awk '$3 ~ /^\// { print $3 }'
    } | sort -u
}

# copy_qemu TREE TO: copies the files that a guest without display and network needs.
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
        die "the QEMU for the host's disk does not run" "see: $to/qemu-system-x86_64 -device help"
}

# make_image OUT DIR: a file system with the content of DIR and no free space.
make_image() {
    local out=$1 dir=$2 kibibytes files
    kibibytes=$(du -sk --apparent-size "$dir" | cut -f 1)
    files=$(find "$dir" | wc -l)
    # An inode and a partial block per file; the rest is for the file system's structures.
    # ext2, because a disk that is only read needs no journal; the ext4 driver mounts it.
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
    parts=("$UNPACKED_QEMU" "${VUI_SMALL_KERNEL%/*}") # their names are hashes of their inputs
    key=$(key_of <<<"$HOST_DISK_RECIPE ${parts[*]##*/}")
    cache_make host-disk "$key" fill_host_disk "$UNPACKED_QEMU" "$VUI_SMALL_KERNEL"
    export VUI_HOST_DISK=$CACHED/disk
}
