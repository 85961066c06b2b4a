#!/usr/bin/env bash
# Everything that can be said about the code without running it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n==> %s\n' "$*"; }

say "formatting"
cargo fmt --all --check

say "lints"
cargo clippy --workspace --all-targets --locked -- -D warnings

say "house rules"
if [ -d crates/tidy ]; then
    cargo test --locked -p keyframe-tidy
else
    echo "skipped: there is no crates/tidy"
fi

say "dependencies"
if ! cargo deny --version >/dev/null 2>&1; then
    echo "installing cargo-deny (a few minutes, once)"
    # Unoptimised it is built in less than half the time, and as quick with so few crates.
    cargo install --locked --quiet --debug cargo-deny
fi
# The advisory database is a git repository on GitHub; behind a firewall the rest can still be checked.
if curl -sSf --max-time 10 -o /dev/null https://github.com/rustsec/advisory-db 2>/dev/null; then
    cargo deny --locked check
else
    echo "ADVISORIES SKIPPED: the database at github.com/rustsec/advisory-db cannot be reached"
    cargo deny --locked check licenses bans sources
fi

say "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet

say "all checks passed"
