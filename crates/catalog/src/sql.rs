//! Parameters, conditions and columns: what both databases understand, and nothing else.
//!
//! Identifiers and documents are TEXT, numbers, truth values (0 and 1) and moments (microseconds) are BIGINT. The driver that
//! serves both databases knows no more types.

use std::fmt::Display;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;

use crate::{Error, Result};

/// A parameter of a statement.
#[derive(Clone, Debug)]
pub(crate) enum Arg {
    Text(Option<String>),
    Int(Option<i64>),
}

impl Arg {
    pub(crate) fn bind<'q>(self, query: Query<'q, sqlx::Any, AnyArguments>) -> Query<'q, sqlx::Any, AnyArguments> {
        match self {
            Arg::Text(value) => query.bind(value),
            Arg::Int(value) => query.bind(value),
        }
    }
}

/// The parameters of a statement, each text or number.
macro_rules! args {
    ($($value:expr),* $(,)?) => { vec![$($crate::sql::Arg::from($value)),*] };
}
pub(crate) use args;

impl From<i64> for Arg {
    fn from(value: i64) -> Arg {
        Arg::Int(Some(value))
    }
}
impl From<u32> for Arg {
    fn from(value: u32) -> Arg {
        i64::from(value).into()
    }
}
impl From<bool> for Arg {
    fn from(value: bool) -> Arg {
        i64::from(value).into()
    }
}
impl From<Option<i64>> for Arg {
    fn from(value: Option<i64>) -> Arg {
        Arg::Int(value)
    }
}
impl From<String> for Arg {
    fn from(value: String) -> Arg {
        Arg::Text(Some(value))
    }
}
impl From<&str> for Arg {
    fn from(value: &str) -> Arg {
        value.to_owned().into()
    }
}
impl From<Option<String>> for Arg {
    fn from(value: Option<String>) -> Arg {
        Arg::Text(value)
    }
}
impl From<keyframe_agent_api::Generation> for Arg {
    fn from(value: keyframe_agent_api::Generation) -> Arg {
        value.0.into()
    }
}
impl From<keyframe_agent_api::Timestamp> for Arg {
    fn from(value: keyframe_agent_api::Timestamp) -> Arg {
        value.0.into()
    }
}
impl From<Option<keyframe_agent_api::Timestamp>> for Arg {
    fn from(value: Option<keyframe_agent_api::Timestamp>) -> Arg {
        value.map(|moment| moment.0).into()
    }
}
impl<T> From<keyframe_agent_api::Id<T>> for Arg {
    fn from(value: keyframe_agent_api::Id<T>) -> Arg {
        value.to_string().into()
    }
}
impl<T> From<Option<keyframe_agent_api::Id<T>>> for Arg {
    fn from(value: Option<keyframe_agent_api::Id<T>>) -> Arg {
        value.map(|id| id.to_string()).into()
    }
}

/// Conditions joined by AND, with their parameters numbered on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conditions {
    sql: String,
    args: Vec<Arg>,
}

impl Conditions {
    /// Adds a condition; `?` in it stands for the parameter.
    pub(crate) fn and(&mut self, condition: &'static str, arg: impl Into<Arg>) {
        self.args.push(arg.into());
        self.join(&condition.replace('?', &format!("${}", self.args.len())));
    }

    /// Adds a parameter that stands outside of the conditions, and returns its place.
    pub(crate) fn arg(&mut self, arg: impl Into<Arg>) -> String {
        self.args.push(arg.into());
        format!("${}", self.args.len())
    }

    fn join(&mut self, condition: &str) {
        self.sql.push_str(if self.sql.is_empty() { " WHERE " } else { " AND " });
        self.sql.push_str(condition);
    }

    /// The statement with these conditions between `head` and `tail`, and the parameters.
    pub(crate) fn statement(self, head: &str, tail: &str) -> (String, Vec<Arg>) {
        (format!("{head}{}{tail}", self.sql), self.args)
    }
}

/// A pattern for LIKE … ESCAPE '!' that finds `text` anywhere in what was folded by [`folded`].
pub(crate) fn containing(text: &str) -> String {
    let mut pattern = String::from("%");
    for c in folded(text).chars() {
        if matches!(c, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}

/// Text for searching without regard to case.
pub(crate) fn folded(text: &str) -> String {
    text.to_lowercase()
}

/// The columns of a row, with an error that says whose.
pub(crate) trait Columns {
    fn text(&self, column: &str) -> Result<String>;
    fn text_or_null(&self, column: &str) -> Result<Option<String>>;
    fn int(&self, column: &str) -> Result<i64>;
    fn int_or_null(&self, column: &str) -> Result<Option<i64>>;

    fn flag(&self, column: &str) -> Result<bool> {
        Ok(self.int(column)? != 0)
    }

    fn parsed<T>(&self, column: &str) -> Result<T>
    where
        T: std::str::FromStr<Err: Into<Box<dyn std::error::Error + Send + Sync>>>,
    {
        self.text(column)?.parse().map_err(|e| Error::corrupt(column, e))
    }

    fn parsed_or_null<T>(&self, column: &str) -> Result<Option<T>>
    where
        T: std::str::FromStr<Err: Into<Box<dyn std::error::Error + Send + Sync>>>,
    {
        let text = self.text_or_null(column)?;
        text.map(|text| text.parse()).transpose().map_err(|e| Error::corrupt(column, e))
    }

    fn document<T: DeserializeOwned>(&self, column: &str) -> Result<T> {
        serde_json::from_str(&self.text(column)?).map_err(|e| Error::corrupt(column, e))
    }
}

impl Columns for AnyRow {
    fn text(&self, column: &str) -> Result<String> {
        self.try_get(column).map_err(|e| Error::corrupt(column, e))
    }

    fn text_or_null(&self, column: &str) -> Result<Option<String>> {
        self.try_get(column).map_err(|e| Error::corrupt(column, e))
    }

    fn int(&self, column: &str) -> Result<i64> {
        self.try_get(column).map_err(|e| Error::corrupt(column, e))
    }

    fn int_or_null(&self, column: &str) -> Result<Option<i64>> {
        self.try_get(column).map_err(|e| Error::corrupt(column, e))
    }
}

/// A value as it is kept in a document column.
pub(crate) fn document<T: Serialize>(value: &T, what: impl Display) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|e| Error::caused(crate::ErrorKind::Invalid, format!("{what} cannot be stored"), e))
}

/// A unit variant of an enum as its name in documents, for columns.
pub(crate) fn word<T: Serialize>(value: &T) -> Result<String> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => Ok(word),
        Ok(other) => Err(Error::new(crate::ErrorKind::Invalid, format!("'{other}' is not a word"))),
        Err(e) => Err(Error::caused(crate::ErrorKind::Invalid, "a word cannot be stored", e)),
    }
}

/// The enum of a word.
pub(crate) fn unword<T: DeserializeOwned>(word: String, what: &str) -> Result<T> {
    serde_json::from_value(serde_json::Value::String(word)).map_err(|e| Error::corrupt(what, e))
}

/// So many places for parameters in parentheses, the first of them numbered `first`.
pub(crate) fn places(first: usize, count: usize) -> String {
    let places: Vec<String> = (first..first + count).map(|n| format!("${n}")).collect();
    format!("({})", places.join(", "))
}

/// Parameters in one list; SQLite allows 32,766 in a statement.
pub(crate) const BATCH: usize = 1000;
