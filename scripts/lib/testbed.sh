# shellcheck shell=bash
# The parts of the test bed. Each need_... function provides one and exports its path
# (VUI_...). To be sourced after common.sh and packages.sh.

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# --- QEMU ---

QEMU_DEVICES=(vhost-user-test-device-pci vfio-user-pci)

# qemu_is_new_enough PROGRAM: 10.2 introduced the second of the two devices.
qemu_is_new_enough() {
    local devices name
    devices=$("$1" -device help 2>&1) || return 1
    for name in "${QEMU_DEVICES[@]}"; do
        [[ $devices == *"name \"$name\""* ]] || return 1
    done
}

# Runs the unpacked QEMU with the C library in the same tree, which may be moved.
write_qemu_wrapper() {
    cat <<'END'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
lib=$here/usr/lib/x86_64-linux-gnu
export QEMU_MODULE_DIR="$lib/qemu"
exec "$lib/ld-linux-x86-64.so.2" --library-path "$lib" --argv0 "$0" \
    "$here/usr/bin/qemu-system-x86_64" -L "$here/usr/share/qemu" -L "$here/usr/share/seabios" "$@"
END
}

# Keeps only the files that QEMU needs at run time.
fill_qemu() {
    local dir=$1 path
    unpack_part qemu "$dir/unpacked"
    for path in usr/bin/qemu-system-x86_64 usr/lib/x86_64-linux-gnu usr/share/qemu usr/share/seabios; do
        mkdir -p "$dir/$(dirname "$path")"
        mv "$dir/unpacked/$path" "$dir/$path"
    done
    rm -rf "$dir/unpacked"
    write_qemu_wrapper >"$dir/qemu-system-x86_64"
    chmod +x "$dir/qemu-system-x86_64"
    qemu_is_new_enough "$dir/qemu-system-x86_64" ||
        die "the QEMU of $DEBIAN_RELEASE-backports does not run on this machine, or lacks ${QEMU_DEVICES[*]}" \
            "see: $dir/qemu-system-x86_64 -device help"
}

# Sets UNPACKED_QEMU, a directory.
need_unpacked_qemu() {
    make_part qemu fill_qemu
    UNPACKED_QEMU=$CACHED
}

need_qemu() {
    VUI_QEMU=$(command -v qemu-system-x86_64) || VUI_QEMU=
    if [[ -z $VUI_QEMU ]] || ! qemu_is_new_enough "$VUI_QEMU"; then
        need_unpacked_qemu
        VUI_QEMU=$UNPACKED_QEMU/qemu-system-x86_64
    fi
    export VUI_QEMU
}

# --- Busybox: the guests' userland, and the host's cpio and depmod ---

fill_busybox() {
    local dir=$1 name
    unpack_part busybox "$dir/unpacked"
    mkdir -p "$dir/root/bin"
    mv "$dir/unpacked/usr/bin/busybox" "$dir/root/bin/busybox"
    rm -rf "$dir/unpacked"
    mkdir "$dir"/root/{dev,etc,proc,sys,tmp}
    while read -r name; do
        [[ $name == busybox ]] || ln -s busybox "$dir/root/bin/$name"
    done < <("$dir/root/bin/busybox" --list)
}

need_busybox() {
    make_part busybox fill_busybox
    export VUI_BUSYBOX=$CACHED/root/bin/busybox
}

# --- The stock guest kernel ---

# The modules that guests load; their dependencies are added.
STOCK_MODULES=(virtio-iommu vfio vfio-pci vfio_iommu_type1)

# copy_modules FROM TO: copies these modules from one lib/modules/RELEASE to another.
copy_modules() {
    local from=$1 to=$2 module line file
    for module in "${STOCK_MODULES[@]}"; do
        line=$(grep -E "(^|/)$module\.ko:" "$from/modules.dep") ||
            die "Debian's kernel has no module $module, which STOCK_MODULES in scripts/lib/testbed.sh lists"
        for file in ${line/:/}; do
            cp "$from/$file" "$to/"
        done
    done
}

unpack_modules() {
    find "$1" -name '*.ko.xz' -exec "$VUI_BUSYBOX" unxz {} +
}

fill_stock_kernel() {
    local dir=$1 from to release kernels configs
    unpack_part stock-kernel "$dir/unpacked"
    from=$(echo "$dir"/unpacked/usr/lib/modules/*)
    release=${from##*/}
    to=$dir/lib/modules/$release
    mkdir -p "$to"
    # Older packages have the kernel in boot, newer ones next to the modules.
    kernels=("$dir"/unpacked/boot/vmlinuz-* "$from/vmlinuz")
    configs=("$dir"/unpacked/boot/config-* "$from/config")
    cp "${kernels[0]}" "$dir/vmlinuz"
    cp "${configs[0]}" "$dir/config"
    step "Decompressing its modules" unpack_modules "$from"
    ln -s usr/lib "$dir/unpacked/lib"
    "$VUI_BUSYBOX" depmod -b "$dir/unpacked" "$release"
    copy_modules "$from" "$to"
    cp "$from"/modules.{builtin,order} "$to"
    "$VUI_BUSYBOX" depmod -b "$dir" "$release"
    rm -rf "$dir/unpacked"
    printf '%s\n' "$release" >"$dir/release"
}

need_stock_kernel() {
    need_busybox
    make_part stock-kernel fill_stock_kernel "${STOCK_MODULES[@]}"
    export VUI_STOCK_KERNEL=$CACHED/vmlinuz
    VUI_STOCK_MODULES=$(echo "$CACHED"/lib/modules/*)
    export VUI_STOCK_MODULES
}

# --- The small kernel, and the debug kernel: the same with lock and memory checking ---

SMALL_CONFIG=("$SCRIPTS/kernel/small.config")
DEBUG_CONFIG=("${SMALL_CONFIG[@]}" "$SCRIPTS/kernel/debug.config")
KERNEL_PATCHES=("$SCRIPTS"/../guest/linux/*.patch)
KERNEL_TOOLS=(gcc libc6-dev make flex bison bc libelf-dev xz-utils patch)
KERNEL_RECIPE=1 # increment it when the functions below produce a different result

fill_linux_source() {
    local package=$1 dir=$2
    unpack_packages "$package (170 MB)" "$dir/unpacked" "$package"
    mv "$dir"/unpacked/usr/src/linux-source-*.tar.xz "$dir/linux.tar.xz"
    rm -rf "$dir/unpacked"
}

# apply_patches DIR: applies all of guest/linux in order, up to the first that fails.
apply_patches() {
    local dir=$1 file
    for file in "${KERNEL_PATCHES[@]}"; do
        printf 'applying %s\n' "${file##*/}"
        patch -d "$dir" -p1 --batch --forward --fuzz=0 <"$file" || return 1
    done
}

# Unpacks into DIR/linux the newest source to which all patches apply.
prepare_source() {
    local dir=$1 package packages key log=$VUI_CACHE/log/kernel-patches.log
    packages=$(part_packages linux-sources)
    for package in $packages; do
        key=$(key_of <<<"$package")
        cache_make linux-source "$key" fill_linux_source "$package"
        rm -rf "$dir/linux"
        mkdir "$dir/linux"
        step "Unpacking $package" tar -C "$dir/linux" --strip-components=1 -xf "$CACHED/linux.tar.xz"
        if apply_patches "$dir/linux" >"$log"; then
            printf '%s\n' "$package" >"$dir/source"
            return
        fi
        say "The patches of guest/linux do not apply to $package: $(tail -n 1 "$log")"
    done
    die "the patches of guest/linux apply to no available kernel source" "for the last one, see $log"
}

# requested_options FRAGMENT...: prints each option of the fragments; the last one takes precedence.
requested_options() {
    awk '/^CONFIG_[A-Z0-9_]+=/ { last[substr($0, 1, index($0, "=") - 1)] = $0 }
         /^# CONFIG_[A-Z0-9_]+ is not set$/ { last[$2] = $0 }
         END { for (name in last) print last[name] }' "$@"
}

# check_config CONFIG FRAGMENT...: exits unless CONFIG has all options as the fragments request.
check_config() {
    local config=$1 missing name unwanted=()
    shift
    missing=$(requested_options "$@" | grep '^CONFIG_' | grep -vxFf "$config") || true
    while read -r _ name _; do
        ! grep -q "^$name=" "$config" || unwanted+=("$name")
    done < <(requested_options "$@" | grep '^# ')
    [[ -z $missing && ${#unwanted[@]} == 0 ]] ||
        die "the kernel's configuration differs from the request in $*" \
            "requested, but not set: ${missing//$'\n'/ }" "not requested, but set: ${unwanted[*]:-none}" \
            "an option may depend on another, or have been renamed in this version"
}

# kernel_make DIR ARGUMENT...: reproducible, whatever the machine and date.
kernel_make() {
    local dir=$1 cc=gcc
    shift
    ! command -v ccache >/dev/null || cc="ccache gcc"
    make -C "$dir" CC="$cc" KBUILD_BUILD_USER=testbed KBUILD_BUILD_HOST=testbed \
        KBUILD_BUILD_TIMESTAMP='1970-01-01' "$@"
}

# configure_kernel LINUX FRAGMENT...
configure_kernel() {
    local linux=$1
    shift
    kernel_make "$linux" tinyconfig
    cat "$@" >>"$linux/.config"
    kernel_make "$linux" olddefconfig
}

# build_kernel DIR NAME FRAGMENT...: builds DIR/bzImage and keeps the source in DIR/linux.
build_kernel() {
    local dir=$1 name=$2 linux=$1/linux
    shift 2
    need_packages "Building a kernel" "${KERNEL_TOOLS[@]}"
    prepare_source "$dir"
    step "Configuring the $name kernel" configure_kernel "$linux" "$@"
    check_config "$linux/.config" "$@"
    step "Building the $name kernel (6 to 12 minutes on 2 cores)" kernel_make "$linux" -j"$(nproc)" bzImage
    cp "$linux/arch/x86/boot/bzImage" "$dir/bzImage"
    cp "$linux/.config" "$dir/config"
    cp "$linux/include/config/kernel.release" "$dir/release"
}

fill_small_kernel() {
    local dir=$1
    build_kernel "$dir" small "${SMALL_CONFIG[@]}"
    step "Building its dma_map_benchmark" gcc -O2 -static -I "$dir/linux/include/uapi" \
        -o "$dir/dma_map_benchmark" "$dir/linux/tools/dma/dma_map_benchmark.c"
    rm -rf "$dir/linux"
}

fill_debug_kernel() {
    build_kernel "$1" debug "${DEBUG_CONFIG[@]}"
    rm -rf "$1/linux"
}

# make_kernel NAME COMMAND FRAGMENT...: cache_make with a key of all inputs of the build.
make_kernel() {
    local name=$1 command=$2 packages key
    shift 2
    need_package_lists
    packages=$(part_packages linux-sources)
    key=$(cat - "$@" "${KERNEL_PATCHES[@]}" <<<"$KERNEL_RECIPE $packages" | key_of)
    cache_make "$name" "$key" "$command"
}

need_small_kernel() {
    make_kernel small-kernel fill_small_kernel "${SMALL_CONFIG[@]}"
    export VUI_SMALL_KERNEL=$CACHED/bzImage
    export VUI_DMA_MAP_BENCHMARK=$CACHED/dma_map_benchmark
}

need_debug_kernel() {
    make_kernel debug-kernel fill_debug_kernel "${DEBUG_CONFIG[@]}"
    export VUI_DEBUG_KERNEL=$CACHED/bzImage
}

# --- Initial RAM disks ---

# add_to_root ROOT SOURCE DESTINATION: copies a file, or the content of a directory.
add_to_root() {
    local source=$2 destination=$1/$3
    [[ -e $source ]] || die "cannot add $source to the initial RAM disk: no such file or directory"
    if [[ -d $source ]]; then
        mkdir -p "$destination"
        cp -rL "$source/." "$destination"
    else
        mkdir -p "$(dirname "$destination")"
        cp -L "$source" "$destination"
    fi
}

# pack_root ROOT: reproducible, whatever the user and date.
pack_root() (
    cd "$1" || exit
    chmod -R u=rwX,go=rX .
    find . -exec touch -h -d @0 {} +
    find . -mindepth 1 | LC_ALL=C sort |
        "$VUI_BUSYBOX" cpio -o -H newc -R 0:0 --renumber-inodes --ignore-devno |
        gzip -1 -n
)

# make_initrd OUT INIT [SOURCE:DESTINATION...]: an archive with busybox, INIT as /init, and
# the given files and directories.
make_initrd() (
    local out=$1 init=$2 pair
    shift 2
    need_busybox
    root=$(mktemp -d) # not local: the trap runs after the function has returned
    trap 'rm -rf "$root"' EXIT
    cp -a "${VUI_BUSYBOX%/bin/busybox}/." "$root"
    add_to_root "$root" "$SCRIPTS/guest/rc" etc/rc
    add_to_root "$root" "$init" init
    for pair in "$@"; do
        [[ $pair == *:* ]] || die "invalid argument '$pair': must be SOURCE:DESTINATION"
        add_to_root "$root" "${pair%%:*}" "${pair#*:}"
    done
    chmod +x "$root/init"
    pack_root "$root" >"$out.part"
    mv "$out.part" "$out"
)
