#!/usr/bin/env bash
# Everything that needs an NVIDIA card, on any x86-64 Linux with a driver. Nothing is built here:
# `cargo xtask card` packs this script with the programs that it runs, in target/card.
#
#   ./gpu.sh           every check, then the table
#   ./gpu.sh check     the checks alone
#   ./gpu.sh bench [--tokens=N,...] [--rounds=N] [SHAPE ...]
#                      the table alone, of these shapes of the catalog
#
# Each part runs even where one before it failed, and each test in a process of its own: what a card's
# program does after a fault says nothing. Beside PEFT + bitsandbytes where NIBBLE_PYTHON (or
# python3) has torch, transformers, peft and bitsandbytes. Output goes to the screen and to gpu.log.
# A shape of 7B takes 14 GB of disk in FOLDER/bench (NIBBLE_BENCH), which is removed afterwards.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")"

what="${1:-all}"
[ $# -gt 0 ] && shift
failed=()

part() {
    local name="$1"
    shift
    echo
    echo "== $name"
    if "$@"; then
        echo "== $name: holds"
    else
        echo "== $name: FAILED ($?)"
        failed+=("$name")
    fi
}

checks() {
    part "the driver answers" bin/nibble devices
    part "what the card does at most" bin/nibble bench --device cuda
    # Every operation against its reference; then trajectories, paging and planned memory. Golden files are
    # found beside the package's `tests`.
    export CARGO_MANIFEST_DIR="$PWD/tests"
    each bin/kernels-tests 60
    each bin/cuda-tests 180
}

# The tests of a program that need a card, each within so many seconds. What fails is run again where
# NVIDIA's own checker is there to say what it did to the memory.
each() {
    local name names checker=()
    command -v compute-sanitizer > /dev/null && checker=(compute-sanitizer --tool memcheck)
    names=$("$1" --list --ignored on_a_card | sed -n 's/: test$//p')
    # A program that does not start has no tests either.
    part "$1 has tests" [ -n "$names" ]
    for name in $names; do
        part "$name" timeout "$2" "$1" --exact "$name" --ignored --nocapture
        if [ ${#checker[@]} -gt 0 ] && [ ${#failed[@]} -gt 0 ] && [ "${failed[-1]}" = "$name" ]; then
            timeout 300 "${checker[@]}" "$1" --exact "$name" --ignored 2>&1 | head -n 60
        fi
    done
}

all() {
    echo "$(date --utc +%F) on $(uname -srm)"
    nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total,power.limit --format=csv 2>/dev/null
    case "$what" in
        check) checks ;;
        bench) bench "$@" ;;
        all)
            checks
            bench "$@"
            ;;
        *) echo "error: \`$what\` is no part; give check, bench, or nothing" && return 2 ;;
    esac
    echo
    if [ ${#failed[@]} -gt 0 ]; then
        printf 'FAILED: %s\n' "${failed[@]}"
        return 1
    fi
    echo "Everything holds."
}

bench() {
    # The program finds what it measures with beside it.
    part "speed and memory" env CARGO_MANIFEST_DIR="$PWD/xtask" NIBBLE_PROGRAMS="$PWD/bin" \
        bin/xtask bench cuda "$@"
}

all "$@" 2>&1 | tee gpu.log
exit "${PIPESTATUS[0]}"
