#!/bin/bash
# Runs every fuzz target of the tree for a while: fuzz.sh SECONDS
#
# libFuzzer with the coverage instrumentation of the compiler at hand: neither a nightly compiler nor cargo-fuzz is
# needed. Address sanitising, which needs nightly, would add nothing in crates that forbid unsafe code; assertions and
# overflow checks are on. What was learned is kept beside the build, so that the next run goes on from there.
set -euo pipefail

seconds=${1:?how long each target runs, in seconds}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
target_dir=$(realpath -m "${CARGO_TARGET_DIR:-target}")/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')

if ! command -v g++ >/dev/null; then
    echo "fuzz: g++ is needed to build libFuzzer: apt-get install g++" >&2
    exit 1
fi
flags=(
    --cfg fuzzing -Cdebug-assertions -Coverflow-checks -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
)
failed=0
while read -r manifest; do
    # With a --target the flags do not reach build scripts, which could not be linked with them.
    RUSTFLAGS="${flags[*]}" CARGO_TARGET_DIR=$target_dir \
        cargo build --release --manifest-path "$manifest" --target "$host" --bins
    for source in "${manifest%/*}"/fuzz_targets/*.rs; do
        name=$(basename "$source" .rs)
        corpus=$target_dir/corpus/$name
        mkdir -p "$corpus"
        echo "fuzz: $name for $seconds s, from $(find "$corpus" -type f | wc -l) inputs"
        log=$target_dir/$name.log
        if "$target_dir/$host/release/$name" -max_total_time="$seconds" -timeout=10 \
            -artifact_prefix="$target_dir/failure-$name-" "$corpus" >"$log" 2>&1; then
            tail -n 1 "$log"
        else
            tail -n 40 "$log"
            echo "fuzz: $name failed; the input is named above, the log is $log"
            failed=1
        fi
    done
done < <(git ls-files '*/fuzz/Cargo.toml')
exit $failed
