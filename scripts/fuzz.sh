#!/usr/bin/env bash
# Feed the parsers what nobody would write, with coverage and the address sanitizer.
#
# usage: scripts/fuzz.sh [SECONDS] [TARGET...]
#
#   SECONDS   time for each target, 30 unless given
#   TARGET    a name from fuzz/fuzz_targets; all of them unless given
#
# Prints one line for each target. Exits 1 when a target found something: the input is then in
# fuzz/artifacts/TARGET, beside the log, and the reason is shown. Exits 2 on bad usage. Inputs that reached
# new code are kept in fuzz/corpus/TARGET for the next run; it begins with those in fuzz/seeds/TARGET.
#
# Needs the toolchain of the package and a C++ compiler. The compiler's own flags are used instead of
# cargo-fuzz, so that nothing else has to be installed.
set -euo pipefail

usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' ../scripts/fuzz.sh >&2
    exit 2
}

cd "$(dirname "$0")/../fuzz"

seconds=30
if [[ ${1-} =~ ^[0-9]+$ ]]; then
    seconds=$1
    shift
fi
# 0 would be for ever.
[[ $seconds =~ ^0+$ ]] && usage

known=()
for file in fuzz_targets/*.rs; do
    name=${file##*/}
    known+=("${name%.rs}")
done
targets=("$@")
[[ $# -gt 0 ]] || targets=("${known[@]}")
for target in "${targets[@]}"; do
    [[ " ${known[*]} " == *" $target "* ]] || usage
done

host=$(rustc -vV | sed -n 's/^host: //p')
bins=()
for target in "${targets[@]}"; do
    bins+=(--bin "$target")
done
# The target is named so that build scripts and macros are built without the flags.
RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address \
-Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares \
--cfg fuzzing -Cdebug-assertions -Ccodegen-units=1" \
    cargo build --quiet --locked --release --target "$host" --target-dir target "${bins[@]}"

# What AddressSanitizer keeps after it was freed counts against the limit below.
export ASAN_OPTIONS=quarantine_size_mb=32

found=0
for target in "${targets[@]}"; do
    mkdir -p "corpus/$target" "artifacts/$target"
    log=artifacts/$target/log
    corpus=("corpus/$target")
    [[ ! -d seeds/$target ]] || corpus+=("seeds/$target")
    status=0
    "target/$host/release/$target" "${corpus[@]}" \
        -max_total_time="$seconds" -max_len=4096 -rss_limit_mb=512 -timeout=10 \
        -artifact_prefix="artifacts/$target/" -print_final_stats=1 >"$log" 2>&1 || status=$?
    execs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    peak=$(sed -n 's/^stat::peak_rss_mb: *//p' "$log")
    edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    if [[ $status -eq 0 ]]; then
        verdict="nothing found"
    else
        verdict="FOUND SOMETHING (exit status $status)"
        found=1
    fi
    printf '%s: %s; %s inputs, %s edges, %s MB in %s s\n' \
        "$target" "$verdict" "${execs:-?}" "${edges:-?}" "${peak:-?}" "$seconds"
    # The panic or the sanitizer's verdict, then the input that did it.
    [[ $status -eq 0 ]] || grep -E -A 3 'panicked at|ERROR: |Test unit written' "$log" >&2 || cat "$log" >&2
done
exit "$found"
