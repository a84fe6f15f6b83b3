# shellcheck shell=bash
# Building programs of this project that run in any guest. To be sourced.

STATIC_TARGET=x86_64-unknown-linux-gnu

# static_build ARGUMENT...: "cargo build", with one set of flags for all such
# programs, so that what they share is built once.
static_build() {
    # With --target the flags are for the program alone, not for what builds it.
    RUSTFLAGS='-C target-feature=+crt-static -C strip=debuginfo' \
        "${CARGO:-cargo}" build --release --target "$STATIC_TARGET" "$@"
}
