#!/usr/bin/env bash
# Every test of the workspace, the ones that boot virtual machines included. Arguments go to the runner.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The system tests drive the binary as a user would, so it has to be built whatever package is being tested.
cargo build --locked -p keyframe
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace --locked "$@"
    # nextest does not run the examples in the documentation.
    cargo test --workspace --locked --doc
else
    cargo test --workspace --locked "$@"
fi
