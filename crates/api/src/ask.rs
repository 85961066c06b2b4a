//! The one wrapper around every handler: what a request carries besides its own parameters, and how answers are written.

use std::time::Duration;

use axum::Json;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use keyframe_manager::request::{Call, Caller, JobRef, Key, Outcome, Page};
use keyframe_manager::{ErrorKind, Manager};
use keyframe_model::agent::{Generation, JobId, SnapshotId, TemplateId, VmId};
use serde::Serialize;

use crate::State;
use crate::digest::digest;
use crate::params;
use crate::problem::Problem;
use crate::repeat::{KEY, Said};

/// What a handler returns.
pub(crate) type Answer = Result<Response, Problem>;

/// Longest idempotency key.
const MAX_KEY: usize = 200;

/// A request, apart from its path, parameters and body.
pub(crate) struct Ask {
    state: State,
    call: Call,
    wait: Option<u64>,
    /// Tags of what the caller has, if it only reads.
    none_match: String,
    uri: Uri,
}

/// A view with a generation, which begins the answer's `ETag`.
pub(crate) trait Versioned: Serialize {
    fn generation(&self) -> Generation;
}

impl FromRequestParts<State> for Ask {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Ask, Problem> {
        // Put there by the guard; a route outside it would be a mistake of ours, and is refused.
        let caller = parts.extensions.get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| Problem::unauthorized("this request was not authenticated"))?;
        let word = word(&parts.headers, KEY)?;
        let said = parts.extensions.get::<Said>();
        let key = word.zip(said).map(|(word, Said(said))| Key { word, said: said.clone() });
        let expected = generation(&parts.headers, header::IF_MATCH.as_str())?;
        let none_match = parts.headers.get(header::IF_NONE_MATCH).filter(|_| parts.method.is_safe());
        let none_match = none_match.and_then(|tags| tags.to_str().ok()).unwrap_or("").to_owned();
        Ok(Ask {
            state: state.clone(),
            call: Call { caller, key, expected },
            wait: params::wait(&parts.uri)?,
            none_match,
            uri: parts.uri.clone(),
        })
    }
}

fn word(headers: &HeaderMap, name: &str) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    match value.to_str() {
        Ok(text) if (1..=MAX_KEY).contains(&text.len()) => Ok(Some(text.to_owned())),
        _ => Err(Problem::new(ErrorKind::Invalid, format!("{name} is 1 to {MAX_KEY} visible characters"))),
    }
}

/// The generation in a strong entity tag (RFC 9110, section 8.8.3), `"GENERATION-DIGEST"` or `"GENERATION"`; `*` asks for no
/// certain one.
fn generation(headers: &HeaderMap, name: &str) -> Result<Option<Generation>, Problem> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let text = value.to_str().unwrap_or("");
    if text == "*" {
        return Ok(None);
    }
    let number = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).and_then(|text| {
        let (number, digest) = text.split_once('-').unwrap_or((text, ""));
        number.parse().ok().filter(|_| digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
    });
    let wrong =
        || Problem::new(ErrorKind::Invalid, format!("{name} is the ETag of an earlier answer, with its quotes"));
    number.map(|number| Some(Generation(number))).ok_or_else(wrong)
}

impl Ask {
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn manager(&self) -> &Manager {
        &self.state.manager
    }

    pub(crate) fn caller(&self) -> &Caller {
        &self.call.caller
    }

    pub(crate) fn call(&self) -> &Call {
        &self.call
    }

    /// A machine by its identifier or name.
    pub(crate) async fn vm(&self, vm: &str) -> Result<VmId, Problem> {
        Ok(self.manager().find_vm(self.caller(), vm).await?)
    }

    /// A snapshot by its identifier, or as `MACHINE@SNAPSHOT`, each by identifier or name.
    pub(crate) async fn snapshot(&self, text: &str) -> Result<SnapshotId, Problem> {
        let (vm, name) = match text.split_once('@') {
            Some((vm, name)) => (Some(self.vm(vm).await?), name),
            None => (None, text),
        };
        Ok(self.manager().find_snapshot(self.caller(), vm, name).await?)
    }

    /// A template by its identifier or name.
    pub(crate) async fn template(&self, template: &str) -> Result<TemplateId, Problem> {
        Ok(self.manager().find_template(self.caller(), template).await?)
    }

    /// Something that was asked for.
    pub(crate) fn found(&self, view: &impl Versioned) -> Answer {
        let wrong = |_| Problem::new(ErrorKind::Internal, "the answer cannot be written");
        let body = serde_json::to_vec(view).map_err(wrong)?;
        // A view holds more than what its generation counts the changes of.
        let tag = format!("\"{}-{:.16}\"", view.generation(), digest(&body));
        // For those who only read a weak tag is as good (RFC 9110, section 13.1.2).
        let mut known = self.none_match.split(',').map(|tag| tag.trim().trim_start_matches("W/"));
        if known.any(|known| known == tag) {
            return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
        }
        let kind = (header::CONTENT_TYPE, "application/json".to_owned());
        Ok(([(header::ETAG, tag), kind], body).into_response())
    }

    /// Something without a generation.
    pub(crate) fn done(&self, view: &impl Serialize) -> Answer {
        Ok(Json(view).into_response())
    }

    /// A part of a list, with the address of the next one.
    pub(crate) fn page<T: Serialize>(&self, page: &Page<T>) -> Answer {
        let mut response = Json(page).into_response();
        if let Some(next) = &page.next {
            let mut query: Vec<String> = self.uri.query().unwrap_or("").split('&').map(str::to_owned).collect();
            query.retain(|pair| !pair.is_empty() && !pair.starts_with("after="));
            query.push(format!("after={next}"));
            let link = format!("<{}?{}>; rel=\"next\"", self.uri.path(), query.join("&"));
            let link = HeaderValue::try_from(link).map_err(|_| Problem::new(ErrorKind::Internal, "no next page"))?;
            response.headers_mut().insert(header::LINK, link);
        }
        Ok(response)
    }

    /// A job that has been ordered: 202 while it is at work, 200 if it ended while the caller waited.
    pub(crate) async fn ordered(&self, job: JobRef) -> Answer {
        self.job(job.id, StatusCode::ACCEPTED).await
    }

    /// What came of a change that may have needed a job.
    pub(crate) async fn outcome<T: Serialize>(&self, outcome: Outcome<T>) -> Answer {
        match outcome {
            Outcome::Done(view) => Ok(Json(view).into_response()),
            Outcome::Job(job) => self.ordered(job).await,
        }
    }

    /// A job as it stands, after waiting as long as the caller wants.
    pub(crate) async fn job(&self, job: JobId, unfinished: StatusCode) -> Answer {
        let view = match self.wait {
            Some(seconds) => self.manager().wait_job(self.caller(), job, Duration::from_secs(seconds)).await?,
            None => self.manager().job(self.caller(), job).await?,
        };
        let status = if view.state.ended() { StatusCode::OK } else { unfinished };
        Ok((status, [(header::LOCATION, format!("/v1/jobs/{job}"))], Json(view)).into_response())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_generations() {
        let check = |text: &'static str, expected: Option<Option<i64>>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_MATCH, HeaderValue::from_static(text));
            let found = generation(&headers, "if-match").ok().map(|found| found.map(|generation| generation.0));
            assert_eq!(found, expected, "{text}");
        };
        check("\"7\"", Some(Some(7)));
        check("\"7-0ab9\"", Some(Some(7)));
        check("*", Some(None));
        for wrong in ["7", "W/\"7\"", "\"x\"", "", "\"7\", \"8\"", "\"7-a\", \"8-b\"", "\"-7\"", "\"-\""] {
            check(wrong, None);
        }
        assert_eq!(generation(&HeaderMap::new(), "if-match").unwrap(), None);
    }
}
