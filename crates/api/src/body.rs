//! JSON bodies. None at all is the same as `{}`, so that a wish without particulars needs no body.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use keyframe_manager::ErrorKind;
use serde::de::DeserializeOwned;

use crate::problem::Problem;

/// Largest body. Cloud-init data is the largest thing anybody sends.
pub(crate) const MAX_BODY: usize = 1 << 20;

/// A request's body as a `T`.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let json = request.headers().get(header::CONTENT_TYPE).is_none_or(|kind| {
            kind.to_str().is_ok_and(|kind| kind.split(';').next().is_some_and(|kind| kind.trim() == "application/json"))
        });
        let bytes = Bytes::from_request(request, state).await.map_err(too_large)?;
        if !json && !bytes.is_empty() {
            let (status, title) = (StatusCode::UNSUPPORTED_MEDIA_TYPE, "not JSON");
            return Err(Problem::with_status(ErrorKind::Invalid, status, title, "bodies are application/json"));
        }
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        let invalid = |why| Problem::new(ErrorKind::Invalid, format!("the body is not understood: {why}"));
        read(text).map(Body).map_err(invalid)
    }
}

/// One document and nothing behind it; what is wrong with it names the member.
fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    let mut document = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut document).map_err(|error| {
        let path = error.path().to_string();
        let why = in_words(&error.inner().to_string());
        if path == "." { why } else { format!("{path}: {why}") }
    })?;
    document.end().map_err(|error| in_words(&error.to_string()))?;
    Ok(value)
}

/// What a reader of documents says, for people who do not know what it is written in.
pub(crate) fn in_words(said: &str) -> String {
    const WORDS: [(&str, &str); 9] = [
        ("expected u64", "expected a whole number"),
        ("expected u32", "expected a whole number"),
        ("expected u16", "expected a whole number"),
        ("expected u8", "expected a small whole number"),
        ("expected struct ", "expected an object, a "),
        ("unknown variant", "unknown value"),
        ("invalid digit found in string", "it is no whole number"),
        ("cannot parse integer from empty string", "it is empty and not a whole number"),
        ("EOF while parsing", "it ends in the middle of"),
    ];
    WORDS.iter().fold(said.to_owned(), |text, (theirs, ours)| text.replace(theirs, ours))
}

/// A body that could not be read.
pub(crate) fn too_large(rejection: BytesRejection) -> Problem {
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let detail = format!("a body is at most {MAX_BODY} bytes long");
            Problem::with_status(ErrorKind::Invalid, StatusCode::PAYLOAD_TOO_LARGE, "too large", detail)
        }
        _ => Problem::new(ErrorKind::Invalid, "the body broke off"),
    }
}

#[cfg(test)]
mod tests {
    use keyframe_manager::request::VmCreate;

    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        for (text, says) in [
            (r#"{"name":"a","memory":"x"}"#, "memory: invalid type: string \"x\", expected a whole number at line 1"),
            (r#"{"name":"a","cpus":-1}"#, "cpus: invalid value: integer `-1`, expected a whole number at line 1"),
            (r#"{"name":"a b"}"#, "name: the name 'a b' has ' ' in it"),
            (r#"{"name":"a","disks":[{"bus":"floppy"}]}"#, "disks[0]"),
            (r#"{"nam":"a"}"#, "unknown field `nam`, expected one of `name`"),
            (r#"{"name":"a""#, "it ends in the middle of an object"),
            (r#"{"name":"a"} {}"#, "trailing characters"),
        ] {
            let why = read::<VmCreate>(text.as_bytes()).expect_err(text);
            assert!(why.contains(says), "{text}: {why}");
            assert!(!why.contains("u64") && !why.contains("u32"), "{text}: {why}");
        }
        read::<VmCreate>(br#"{"name":"a"}"#).unwrap();
    }
}
