#!/usr/bin/env bash
# Every test of the workspace, the ones that boot virtual machines included. Arguments go to the runner. The whole workspace is
# built whatever they choose: the system tests drive the binary as a user would.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if cargo nextest --version >/dev/null 2>&1; then
    # nextest does not run the examples in the documentation; they go first so that its summary comes last.
    cargo test --workspace --locked --doc
    cargo nextest run --workspace --locked "$@"
else
    # Which tests must not run beside each other only nextest is told, see .config/nextest.toml; so here none do.
    RUST_TEST_THREADS=1 cargo test --workspace --locked --no-fail-fast "$@"
fi
