# shellcheck shell=bash
# Builds programs of this project that run in any guest. To be sourced.

STATIC_TARGET=x86_64-unknown-linux-gnu

# static_build ARGUMENT...: "cargo build" of static programs, with one set of flags, so that
# what they share is built once. STATIC_PROFILE is the profile, "release" by default.
static_build() {
    # With --target the flags do not apply to build scripts.
    RUSTFLAGS='-C target-feature=+crt-static -C strip=debuginfo' \
        "${CARGO:-cargo}" build --profile "${STATIC_PROFILE:-release}" --target "$STATIC_TARGET" "$@"
}
