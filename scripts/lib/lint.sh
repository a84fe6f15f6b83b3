# shellcheck shell=bash
# Programs for the suite "lint". To be sourced after common.sh.

CARGO_DENY_VERSION=0.20.2

# fill_cargo_deny DIR
fill_cargo_deny() {
    local dir=$1
    step "Building cargo-deny (some minutes)" \
        cargo install --locked --debug --root "$dir" --target-dir "$dir/target" "cargo-deny@$CARGO_DENY_VERSION"
    rm -rf "$dir/target"
}

need_cargo_deny() {
    cache_make cargo-deny "$CARGO_DENY_VERSION" fill_cargo_deny
    # shellcheck disable=SC2034 # for the caller
    CARGO_DENY=$CACHED/bin/cargo-deny
}
