#!/usr/bin/env bash
# The tests that find rare things, for as long as you let them run: power failures, kills, write storms, random operations, the
# full scale, fuzzing. Every round uses new seeds; a failure prints the seed that repeats it.
#
#   ./x soak [MINUTES]      default 120
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
minutes=${1:-120}
end=$(($(date +%s) + minutes * 60))
seed=$(($(date +%s) % 1000000 * 1000))

say() { printf '\n==> %s\n' "$*"; }
left() { [ "$(date +%s)" -lt "$end" ]; }
engine() { cargo test --release --locked -p keyframe-engine "$@"; }

say "full scale: 100,000 snapshots, 5,000 clones"
KEYFRAME_SCALE=100000 engine --test scale -- --nocapture

say "10 GiB mapped at random in 1 TiB, with 64 MiB of cache"
KEYFRAME_SPARSE_GIB=10 engine --test sparse -- --nocapture

round=0
while left; do
    round=$((round + 1))
    seed=$((seed + 100000))
    say "round $round, seeds from $seed; repeat one with KEYFRAME_SEED=<seed> KEYFRAME_SEEDS=1"
    KEYFRAME_SEED=$seed KEYFRAME_SEEDS=5000 engine --test crash
    KEYFRAME_SEED=$seed KEYFRAME_SEEDS=5000 engine --test storm
    KEYFRAME_SEED=$seed KEYFRAME_SEEDS=300 engine --test property
    KEYFRAME_KILLS=200 engine --test kill
    # Jobs can be held at their steps in a build with debug assertions only.
    cargo build --locked -p keyframe
    if [ "$round" = 1 ]; then
        KEYFRAME_DEATHS=all cargo test --locked -p keyframe-lab --test deaths -- --nocapture
    fi
    KEYFRAME_SEEDS=100 cargo test --locked -p keyframe-lab --test crashes
    # Coverage-guided fuzzing needs a nightly compiler and cargo-fuzz; without them the seeded mutations above do what they can.
    if cargo +nightly fuzz --version >/dev/null 2>&1; then
        for target in pool_image memory_stream nbd_handshake nbd_transmission; do
            left && cargo +nightly fuzz run "$target" -- -max_total_time=300
        done
    fi
done
say "soaked for $minutes minutes, $round rounds, nothing found"
