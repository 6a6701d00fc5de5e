#!/usr/bin/env bash
# Everything that needs an NVIDIA card, on any x86-64 Linux with a driver. Nothing is built here:
# `cargo xtask card` packs this script with the programs that it runs, in target/card.
#
#   ./gpu.sh           every check, then the table
#   ./gpu.sh check     the checks alone
#   ./gpu.sh bench [SHAPE ...]
#                      the table alone, of these shapes of the catalog
#
# Each part runs even where one before it failed. Beside PEFT + bitsandbytes where NIBBLE_PYTHON (or
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
    part "every operation against its reference, on the card" \
        bin/kernels-tests --ignored on_a_card --test-threads=1
    # Golden files are found beside the package's `tests`.
    part "trajectories, paging and planned memory, on the card" \
        env CARGO_MANIFEST_DIR="$PWD/tests" bin/cuda-tests --ignored on_a_card --test-threads=1
}

all() {
    echo "$(date --utc +%F) on $(uname -srm)"
    nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total,power.limit --format=csv 2>/dev/null
    case "$what" in
        check) checks ;;
        bench) bench "$@" ;;
        all) checks && bench "$@" ;;
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
