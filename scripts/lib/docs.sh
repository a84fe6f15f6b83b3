# shellcheck shell=bash
# Tests of the documentation: links, and the commands of README. To be sourced after
# common.sh, with the root of the source tree as the working directory.

# --- Links ---

# anchors_of FILE: the anchors of its headings, as GitHub forms them.
anchors_of() {
    sed -nE 's/^#+ //p' "$1" | tr '[:upper:]' '[:lower:]' | sed -E 's/[^a-z0-9 _-]//g; s/ /-/g'
}

# broken_links FILE: its relative links that name no file, or no heading of the file.
broken_links() {
    local file=$1 link target anchor
    while read -r link; do
        target=${link%%#*} anchor=
        [[ $link != *#* ]] || anchor=${link#*#}
        target=${target:+${file%"${file##*/}"}$target}
        target=${target:-$file}
        if [[ ! -e $target ]]; then
            say "$file: link to $link: no such file"
        elif [[ $anchor ]] && ! anchors_of "$target" | grep -qxF "$anchor"; then
            say "$file: link to $link: no such heading"
        else
            continue
        fi
        BROKEN=1
    done < <(grep -oE '\]\([^)]+\)' "$file" | sed -E 's/^\]\(|\)$//g' | grep -vE '^[a-z]+:')
}

check_links() {
    local file
    BROKEN=
    while read -r file; do
        broken_links "$file"
    done < <(git ls-files '*.md')
    [[ ! $BROKEN ]] || die "links of the documentation are broken, see above"
}

# --- The commands of README ---

# readme_blocks INFO: the fenced blocks of the section "By hand" with this info string.
readme_blocks() {
    awk -v fence="\`\`\`$1" '
        /^## / { section = $0 == "## By hand" }
        section && $0 == fence { inside = 1; next }
        $0 == "```" { inside = 0 }
        inside' README.md
}

# Hides /dev/kvm where the processor has no virtualization extensions: some hosts provide
# it nevertheless, and guests do not boot with it.
without_unusable_kvm() {
    if [[ -w /dev/kvm ]] && ! grep -qwE 'vmx|svm' /proc/cpuinfo; then
        # shellcheck disable=SC2016 # for the other shell
        unshare --mount sh -c 'mount --bind /dev/null /dev/kvm && exec "$@"' sh "$@"
    else
        "$@"
    fi
}

# type_into_guest LOG PID: reads commands from stdin and prints each one when the guest shows
# its next prompt in LOG; ends early if PID does.
type_into_guest() {
    local log=$1 pid=$2 command count=0
    while read -r command; do
        count=$((count + 1))
        until (($(grep -o '~ # ' "$log" | wc -l) >= count)); do
            kill -0 "$pid" 2>/dev/null || return 0
            sleep 0.2
        done
        printf '%s\n' "$command"
    done
}

# run_readme DIR: runs the blocks "sh" in a shell; types the blocks "sh guest" into the guest.
# The shell's temporary directories are in DIR.
run_readme() {
    local dir=$1 pid
    readme_blocks sh >"$dir/commands"
    readme_blocks 'sh guest' >"$dir/guest-commands"
    [[ -s $dir/commands && -s $dir/guest-commands ]] ||
        die "README's section \"By hand\" has no commands" "see scripts/lib/docs.sh"
    mkfifo "$dir/console"
    without_unusable_kvm env -u CARGO_TARGET_DIR TMPDIR="$dir" timeout --kill-after 10 1200 \
        bash -eux "$dir/commands" <>"$dir/console" >"$dir/log" 2>&1 &
    pid=$!
    type_into_guest "$dir/log" "$pid" <"$dir/guest-commands" >"$dir/console"
    wait "$pid"
}

# check_readme_output DIR: the guest has found the IOMMU, and the accelerator behind it.
check_readme_output() {
    local dir=$1 text
    for text in 'virtio_iommu virtio[0-9]+: page mask' '^0000:00:02\.0$'; do
        tr -d '\r' <"$dir/log" | grep -qE "$text" ||
            die "the guest of README's commands does not show: $text" "$(tail -n 40 "$dir/log")"
    done
}

# The block "text" is what the command in the block before it prints.
check_readme_qemu_args() {
    local command
    # shellcheck disable=SC2016 # for sed
    command=$(readme_blocks sh | sed -n '/^eval "set -- \$(/,/)"$/ { s/^eval "set -- \$(//; s/)"$//; p }')
    diff -u <(readme_blocks text) <(PATH=$PWD/target/release:$PATH && eval "$command") >&2 ||
        die "README does not show the output of qemu-args" "put it there, see above"
}

test_readme() (
    dir=$(mktemp -d) # not local: the trap runs after the function has returned
    trap 'rm -rf "$dir"' EXIT
    run_readme "$dir" || die "README's commands failed with status $?" "$(tail -n 40 "$dir/log")"
    check_readme_output "$dir"
    check_readme_qemu_args
)
