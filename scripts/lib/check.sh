# shellcheck shell=bash
# A test of the test bed itself. To be sourced after testbed.sh.

# boot_guest KERNEL INITRD QEMU_ARGUMENT...: boots the guest and returns when it is off.
boot_guest() {
    local kernel=$1 initrd=$2
    shift 2
    timeout 120 "$VUI_QEMU" -M q35 -accel tcg,thread=multi -cpu max -smp 2 -m 512M \
        -nodefaults -nographic -no-reboot -serial stdio \
        -kernel "$kernel" -initrd "$initrd" -append 'console=ttyS0 panic=-1 quiet' "$@"
}

# check_guest NAME KERNEL FILES...
check_guest() {
    local name=$1 kernel=$2 initrd log
    shift 2
    initrd=$VUI_CACHE/tmp/check-$name.initrd
    log=$VUI_CACHE/log/Booting-the-$name-kernel.log # written by step
    make_initrd "$initrd" "$SCRIPTS/guest/check" "$@"
    step "Booting the $name kernel" boot_guest "$kernel" "$initrd" \
        -device virtio-iommu-pci,addr=01.0 -device edu,addr=02.0
    grep -q '^guest: all checks passed' "$log" ||
        die "a check failed in the guest with the $name kernel" "see $log"
    grep -oE '(guest: |average |dma mapping ).*' "$log" | tr -d '\r'
}

check_testbed() {
    check_guest stock "$VUI_STOCK_KERNEL" "$VUI_STOCK_MODULES:/lib/modules/${VUI_STOCK_MODULES##*/}"
    check_guest small "$VUI_SMALL_KERNEL" "$VUI_DMA_MAP_BENCHMARK:/bin/dma_map_benchmark"
    check_guest debug "$VUI_DEBUG_KERNEL"
}
