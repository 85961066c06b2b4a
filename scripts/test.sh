#!/usr/bin/env bash
# Every test of the workspace, the ones that boot virtual machines included. Arguments go to the runner.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The system tests drive the binary as a user would, so it has to be built whatever package is being tested.
cargo build --locked -p keyframe
if cargo nextest --version >/dev/null 2>&1; then
    # nextest does not run the examples in the documentation; they go first so that its summary comes last.
    cargo test --workspace --locked --doc
    cargo nextest run --workspace --locked "$@"
else
    cargo test --workspace --locked "$@"
fi
