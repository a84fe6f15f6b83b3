# shellcheck shell=bash
# What every script here needs: messages, progress, Debian packages, the cache.
# To be sourced.

set -euo pipefail
shopt -s inherit_errexit nullglob

VUI_CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/vhost-user-iommu

say() {
    printf '%s\n' "$*" >&2
}

# die WHAT [WHAT_TO_DO...]: one line each, then the end.
die() {
    say "error: $1"
    shift
    (($# == 0)) || printf '       %s\n' "$@" >&2
    exit 1
}

# --- Progress ---

last_line() {
    # without the escape sequences that a guest's firmware writes
    tail -c 400 "$1" | tr '\r' '\n' | sed 's/\x1b\[*[^a-zA-Z]*[a-zA-Z]//g' | awk 'NF { line = $0 } END { print substr(line, 1, 70) }'
}

# On a terminal one line that changes, else a line each time.
show_progress() {
    if [[ -t 2 ]]; then
        printf '\r\033[K%s' "$1" >&2
    else
        say "$1"
    fi
}

clear_progress() {
    [[ ! -t 2 ]] || printf '\r\033[K' >&2
}

# ticker LOG: shows every few seconds how far LOG is, until stdin ends.
ticker() {
    local log=$1 started=$SECONDS status
    while true; do
        status=0
        read -r -t 5 || status=$?
        ((status > 128)) || break # not a timeout: the step has ended, or its script has died
        show_progress "  $((SECONDS - started)) s: $(last_line "$log")"
    done
    clear_progress
}

# step TEXT COMMAND...: runs COMMAND (a program or a function) with its output
# in a log and progress on stderr; stops with the log's end if it fails.
step() {
    local text=$1 log started=$SECONDS status progress ticker_pid
    shift
    mkdir -p "$VUI_CACHE/log"
    log="$VUI_CACHE/log/${text//[^A-Za-z0-9.]/-}.log"
    say "$text ..."
    : >"$log"
    exec {progress}> >(ticker "$log")
    ticker_pid=$!
    # Not "COMMAND || status=$?": bash would ignore errors inside a function called so.
    set +e
    (set -e; "$@") >>"$log" 2>&1 </dev/null {progress}>&-
    status=$?
    set -e
    exec {progress}>&-
    wait "$ticker_pid"
    if ((status != 0)); then
        tail -n 15 "$log" | sed 's/^/  | /' >&2
        die "$text failed with status $status" "command: $*" "whole log: $log"
    fi
    ((SECONDS - started < 5)) || say "  done in $((SECONDS - started)) s"
}

# --- Debian packages of this machine ---

missing_packages() {
    local package status
    for package in "$@"; do
        status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || status=unknown
        [[ $status == installed ]] || printf '%s\n' "$package"
    done
}

# install_packages [sudo] -- PACKAGE...
install_packages() {
    local as_root=()
    while [[ $1 != -- ]]; do
        as_root+=("$1")
        shift
    done
    shift
    local apt_get=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive
        apt-get -o DPkg::Lock::Timeout=120)
    # A fresh machine has no package lists yet. A foreign repository that does
    # not answer fails the update, but may not matter: the install decides.
    "${apt_get[@]}" update || true
    "${apt_get[@]}" install -y --no-install-recommends "$@"
}

# need_packages WHAT_FOR PACKAGE...: installs those that are missing.
need_packages() {
    local what_for=$1 missing as_root=()
    shift
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]} > 0)) || return 0
    if ((EUID != 0)); then
        if ! command -v sudo >/dev/null || ! sudo -v; then
            die "$what_for needs Debian packages that are not installed: ${missing[*]}" \
                "as root: apt-get install --no-install-recommends ${missing[*]}"
        fi
        as_root=(sudo)
    fi
    step "Installing ${missing[*]}" install_packages "${as_root[@]}" -- "${missing[@]}"
}

# --- The cache ---
#
# $VUI_CACHE/NAME-KEY    a finished part, never changed again
# $VUI_CACHE/tmp/NAME-KEY{,.lock}    one being made, and who makes it
# $VUI_CACHE/log         the last log of each step

# key_of: a short key of stdin.
key_of() {
    local sum
    sum=$(sha256sum)
    printf '%s\n' "${sum:0:12}"
}

# Directories whose lock can be had belong to runs that died.
sweep_dead_runs() {
    local dir
    for dir in "$VUI_CACHE"/tmp/*/; do
        dir=${dir%/}
        flock --nonblock --conflict-exit-code 0 "$dir.lock" rm -rf "$dir"
    done
}

# cache_make NAME KEY COMMAND...: sets CACHED to the directory NAME-KEY of the
# cache. If it is not there, COMMAND DIR fills a new DIR, which then gets that
# name in one step, so that nobody ever sees half of it.
cache_make() {
    local name=$1 key=$2 made tmp lock
    shift 2
    made=$VUI_CACHE/$name-$key
    if [[ ! -d $made ]]; then
        tmp=$VUI_CACHE/tmp/$name-$key
        mkdir -p "$VUI_CACHE/tmp"
        # Children inherit the lock on purpose: if this script is killed, it is
        # held until the last program that writes to the directory has ended.
        exec {lock}>"$tmp.lock"
        if ! flock --nonblock "$lock"; then
            say "Waiting for another run that makes $name ..."
            flock "$lock"
        fi
        if [[ ! -d $made ]]; then # the other run may have made it
            rm -rf "$tmp"
            sweep_dead_runs
            mkdir "$tmp"
            "$@" "$tmp"
            mv -T "$tmp" "$made"
        fi
        exec {lock}>&-
    fi
    # shellcheck disable=SC2034 # for the caller
    CACHED=$made
}
