//! The rules, from outside: transitions held to golden tables, trees held to an oracle, plans held to what people expect.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail loudly")]

mod common;
mod documents;
mod plans;
mod transitions;
mod trees;
