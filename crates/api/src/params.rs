//! What an address says: the names in its path, and its query string. Parameters that the endpoint does not know are refused, so
//! that a misspelt filter is not taken for none.

use axum::extract::rejection::QueryRejection;
use axum::extract::{self, FromRequestParts, Query};
use axum::http::Uri;
use axum::http::request::Parts;
use keyframe_manager::ErrorKind;
use keyframe_manager::request::PageRequest;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::IntoParams;

use crate::body::in_words;
use crate::problem::Problem;

/// How long the answer may wait for the job.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Wait {
    /// Answer when the job has ended, or after so many seconds, at most 300; at once when absent.
    #[param(maximum = 300)]
    pub(crate) wait: Option<u64>,
}

/// The names in the path of a request.
pub(crate) struct Path<T>(pub(crate) T);

/// The parameters `T` of a request that may also say `wait`.
pub(crate) struct Params<T>(pub(crate) T);

/// The filter `T` of a list, and which part of it is wanted.
pub(crate) struct Part<T> {
    pub(crate) filter: T,
    pub(crate) page: PageRequest,
}

/// Only known parameters, each of them well-formed.
fn read<T: DeserializeOwned + IntoParams>(uri: &Uri, also: &[String]) -> Result<T, Problem> {
    let invalid = |why: String| Problem::new(ErrorKind::Invalid, why);
    let known = names::<T>();
    let query = uri.query().unwrap_or("");
    let mut mine = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let name = pair.split_once('=').map_or(pair, |(name, _)| name);
        if known.iter().any(|known| known == name) {
            mine.push(pair);
        } else if !also.iter().any(|other| other == name) {
            let all: Vec<&str> = known.iter().chain(also).map(String::as_str).collect();
            let shown: String = name.chars().take(40).collect();
            let what = if all.is_empty() { "none are".to_owned() } else { format!("known are: {}", all.join(", ")) };
            return Err(invalid(format!("the parameter '{}' is not known here; {what}", shown.escape_debug())));
        }
    }
    let mine: Uri = format!("/?{}", mine.join("&")).parse().map_err(|_| invalid("the query is not one".into()))?;
    let not_understood = |error: QueryRejection| {
        let said = error.body_text();
        let why = said.strip_prefix("Failed to deserialize query string: ").unwrap_or(&said);
        invalid(format!("the query is not understood: {}", in_words(why)))
    };
    Query::try_from_uri(&mine).map(|Query(params)| params).map_err(not_understood)
}

/// The names of the parameters that `T` knows.
fn names<T: IntoParams>() -> Vec<String> {
    T::into_params(|| None).into_iter().map(|parameter| parameter.name).collect()
}

/// How long this request wants to wait.
pub(crate) fn wait(uri: &Uri) -> Result<Option<u64>, Problem> {
    let Some(text) = uri.query().unwrap_or("").split('&').find_map(|pair| pair.strip_prefix("wait=")) else {
        return Ok(None);
    };
    match text.parse() {
        Ok(seconds) if seconds <= 300 => Ok(Some(seconds)),
        _ => Err(Problem::new(ErrorKind::Invalid, "wait is a number of seconds, at most 300")),
    }
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = extract::Path::from_request_parts(parts, state).await;
        path.map(|extract::Path(names)| Path(names)).map_err(|error| {
            let said = error.body_text();
            let why = said.strip_prefix("Invalid URL: ").unwrap_or(&said);
            Problem::new(ErrorKind::Invalid, format!("the address is not understood: {why}"))
        })
    }
}

impl<T: DeserializeOwned + IntoParams, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        read(&parts.uri, &names::<Wait>()).map(Params)
    }
}

impl<T: DeserializeOwned + IntoParams, S: Send + Sync> FromRequestParts<S> for Part<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let (of_filter, of_page) = (names::<T>(), names::<PageRequest>());
        let filter = read(&parts.uri, &of_page)?;
        let page: PageRequest = read(&parts.uri, &of_filter)?;
        if page.limit.is_some_and(|limit| !(1..=1000).contains(&limit)) {
            return Err(Problem::new(ErrorKind::Invalid, "limit is a number from 1 to 1000"));
        }
        Ok(Part { filter, page })
    }
}
