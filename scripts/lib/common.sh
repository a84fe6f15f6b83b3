# shellcheck shell=bash
# Functions for all scripts: messages, progress, Debian packages, the cache. To be sourced.

set -euo pipefail
shopt -s inherit_errexit nullglob

VUI_CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/vhost-user-iommu

say() {
    printf '%s\n' "$*" >&2
}

# die ERROR [HINT...]: prints them, one per line, and exits.
die() {
    say "error: $1"
    shift
    (($# == 0)) || printf '       %s\n' "$@" >&2
    exit 1
}

# --- Progress ---

last_line() {
    # Removes the escape sequences that a guest's firmware writes.
    tail -c 400 "$1" | tr '\r' '\n' | sed 's/\x1b\[*[^a-zA-Z]*[a-zA-Z]//g' | awk 'NF { line = $0 } END { print substr(line, 1, 70) }'
}

# Overwrites the line on a terminal; prints a new line otherwise.
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

# ticker LOG: shows the last line of LOG every 5 seconds, until stdin is closed.
ticker() {
    local log=$1 started=$SECONDS status
    while true; do
        status=0
        read -r -t 5 || status=$?
        ((status > 128)) || break # end of file: the step has ended, or its script was killed
        show_progress "  $((SECONDS - started)) s: $(last_line "$log")"
    done
    clear_progress
}

# step TEXT COMMAND...: runs COMMAND (a program or a function) with its output in a log and
# progress on stderr. Exits with the end of the log if COMMAND fails.
step() {
    local text=$1 log started=$SECONDS status progress ticker_pid
    shift
    mkdir -p "$VUI_CACHE/log"
    log="$VUI_CACHE/log/${text//[^A-Za-z0-9.]/-}.log"
    say "$text ..."
    : >"$log"
    exec {progress}> >(ticker "$log")
    ticker_pid=$!
    # Not "COMMAND || status=$?", which disables errexit inside a function.
    set +e
    (set -e; "$@") >>"$log" 2>&1 </dev/null {progress}>&-
    status=$?
    set -e
    exec {progress}>&-
    wait "$ticker_pid"
    if ((status != 0)); then
        tail -n 15 "$log" | sed 's/^/  | /' >&2
        die "$text failed with status $status" "command: $*" "log: $log"
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
    # A new machine has no package lists. The update also fails if an unrelated repository
    # is not reachable, so only the result of the installation counts.
    "${apt_get[@]}" update || true
    "${apt_get[@]}" install -y --no-install-recommends "$@"
}

# need_packages PURPOSE PACKAGE...: installs the packages that are missing.
need_packages() {
    local purpose=$1 missing as_root=()
    shift
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]} > 0)) || return 0
    if ((EUID != 0)); then
        if ! command -v sudo >/dev/null || ! sudo -v; then
            die "${purpose,} requires Debian packages that are not installed: ${missing[*]}" \
                "run as root: apt-get install --no-install-recommends ${missing[*]}"
        fi
        as_root=(sudo)
    fi
    step "Installing ${missing[*]}" install_packages "${as_root[@]}" -- "${missing[@]}"
}

# --- The cache ---
#
# $VUI_CACHE/NAME-KEY                a complete entry, never modified
# $VUI_CACHE/tmp/NAME-KEY{,.lock}    an entry in progress, and the lock of its process
# $VUI_CACHE/log                     the latest log of each step

# key_of: prints a short hash of stdin.
key_of() {
    local sum
    sum=$(sha256sum)
    printf '%s\n' "${sum:0:12}"
}

# Removes incomplete entries whose lock is free: their processes were killed.
remove_stale_entries() {
    local dir
    for dir in "$VUI_CACHE"/tmp/*/; do
        dir=${dir%/}
        flock --nonblock --conflict-exit-code 0 "$dir.lock" rm -rf "$dir"
    done
}

# cache_make NAME KEY COMMAND...: sets CACHED to the directory NAME-KEY of the cache. If it
# does not exist, COMMAND DIR fills a temporary directory, which is then renamed, so that an
# entry is always complete.
cache_make() {
    local name=$1 key=$2 made tmp lock
    shift 2
    made=$VUI_CACHE/$name-$key
    if [[ ! -d $made ]]; then
        tmp=$VUI_CACHE/tmp/$name-$key
        mkdir -p "$VUI_CACHE/tmp"
        # Child processes inherit the lock: if this script is killed, the lock is held until
        # the last process that writes to the directory has exited.
        exec {lock}>"$tmp.lock"
        if ! flock --nonblock "$lock"; then
            say "Waiting for another process that builds $name ..."
            flock "$lock"
        fi
        if [[ ! -d $made ]]; then # the other process may have built it
            rm -rf "$tmp"
            remove_stale_entries
            mkdir "$tmp"
            "$@" "$tmp"
            mv -T "$tmp" "$made"
        fi
        exec {lock}>&-
    fi
    # shellcheck disable=SC2034 # for the caller
    CACHED=$made
}
