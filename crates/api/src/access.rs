//! Who may call what: every endpoint with the right it takes. One that is not in the table is refused, whoever asks.
//!
//! What a caller may see and do of a certain thing is the manager's to decide; it gets the [`Caller`] with every call.

use axum::http::Method;
use keyframe_manager::request::Caller;

/// What an endpoint takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Right {
    /// Nothing, not even a name.
    Open,
    /// Any authenticated caller; the manager decides about the thing.
    Member,
    /// An administrator.
    Admin,
}

impl Right {
    pub(crate) fn allows(self, caller: &Caller) -> bool {
        match self {
            Right::Open | Right::Member => true,
            Right::Admin => caller.admin,
        }
    }
}

/// Every endpoint: method, path as in the description, right.
pub(crate) const ENDPOINTS: &[(Method, &str, Right)] = &[
    (Method::GET, "/v1/about", Right::Open),
    (Method::GET, "/v1/vms", Right::Member),
    (Method::POST, "/v1/vms", Right::Member),
    (Method::GET, "/v1/vms/{vm}", Right::Member),
    (Method::PATCH, "/v1/vms/{vm}", Right::Member),
    (Method::DELETE, "/v1/vms/{vm}", Right::Member),
    (Method::POST, "/v1/vms/{vm}/start", Right::Member),
    (Method::POST, "/v1/vms/{vm}/stop", Right::Member),
    (Method::POST, "/v1/vms/{vm}/pause", Right::Member),
    (Method::POST, "/v1/vms/{vm}/resume", Right::Member),
    (Method::POST, "/v1/vms/{vm}/reset", Right::Member),
    (Method::POST, "/v1/vms/{vm}/revert", Right::Member),
    (Method::GET, "/v1/vms/{vm}/console", Right::Member),
    (Method::GET, "/v1/vms/{vm}/tree", Right::Member),
    (Method::GET, "/v1/vms/{vm}/snapshots", Right::Member),
    (Method::POST, "/v1/vms/{vm}/snapshots", Right::Member),
    (Method::DELETE, "/v1/vms/{vm}/snapshots", Right::Member),
    (Method::GET, "/v1/vms/{vm}/disks", Right::Member),
    (Method::POST, "/v1/vms/{vm}/disks", Right::Member),
    (Method::GET, "/v1/vms/{vm}/disks/{disk}", Right::Member),
    (Method::DELETE, "/v1/vms/{vm}/disks/{disk}", Right::Member),
    (Method::POST, "/v1/vms/{vm}/disks/{disk}/resize", Right::Member),
    (Method::GET, "/v1/snapshots", Right::Member),
    (Method::GET, "/v1/snapshots/{snapshot}", Right::Member),
    (Method::PATCH, "/v1/snapshots/{snapshot}", Right::Member),
    (Method::DELETE, "/v1/snapshots/{snapshot}", Right::Member),
    (Method::POST, "/v1/snapshots/{snapshot}/apply", Right::Member),
    (Method::POST, "/v1/snapshots/{snapshot}/compress", Right::Member),
    (Method::POST, "/v1/snapshots/{snapshot}/verify", Right::Member),
    (Method::GET, "/v1/snapshots/{snapshot}/diff", Right::Member),
    (Method::POST, "/v1/clones", Right::Member),
    (Method::GET, "/v1/templates", Right::Member),
    (Method::POST, "/v1/templates", Right::Member),
    (Method::GET, "/v1/templates/{template}", Right::Member),
    (Method::PATCH, "/v1/templates/{template}", Right::Member),
    (Method::DELETE, "/v1/templates/{template}", Right::Member),
    (Method::GET, "/v1/jobs", Right::Member),
    (Method::GET, "/v1/jobs/{job}", Right::Member),
    (Method::POST, "/v1/jobs/{job}/cancel", Right::Member),
    (Method::GET, "/v1/hosts", Right::Member),
    (Method::GET, "/v1/hosts/{host}", Right::Member),
    (Method::GET, "/v1/search", Right::Member),
    (Method::GET, "/v1/events", Right::Member),
    (Method::GET, "/v1/tokens", Right::Admin),
    (Method::POST, "/v1/tokens", Right::Admin),
    (Method::DELETE, "/v1/tokens/{token}", Right::Admin),
    (Method::GET, "/v1/openapi.json", Right::Open),
];

/// The right that an endpoint takes. The description's pages are open as their content is.
pub(crate) fn right(method: &Method, path: &str) -> Option<Right> {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    if method == Method::GET && (path == "/docs" || path.starts_with("/docs/")) {
        return Some(Right::Open);
    }
    ENDPOINTS.iter().find(|(its, at, _)| its == method && *at == path).map(|(_, _, right)| *right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_in_the_table_has_no_right() {
        assert_eq!(right(&Method::GET, "/v1/vms"), Some(Right::Member));
        assert_eq!(right(&Method::HEAD, "/v1/vms"), Some(Right::Member));
        assert_eq!(right(&Method::PUT, "/v1/vms"), None);
        assert_eq!(right(&Method::GET, "/v1/secrets"), None);
        assert_eq!(right(&Method::POST, "/docs/"), None);
        assert_eq!(right(&Method::GET, "/docs/{*rest}"), Some(Right::Open));
    }

    /// The description is made of the routes themselves, so that what is in it is what answers.
    #[test]
    fn every_endpoint_is_in_the_table_and_in_the_description() {
        let document = serde_json::to_value(crate::document()).unwrap();
        let mut described: Vec<(String, String)> = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            described.extend(item.as_object().unwrap().keys().map(|method| (path.clone(), method.to_uppercase())));
        }
        let own = |path: &str| path != "/v1/openapi.json";
        let mut listed: Vec<(String, String)> = ENDPOINTS
            .iter()
            .filter(|(_, path, _)| own(path))
            .map(|(method, path, _)| ((*path).to_owned(), method.to_string()))
            .collect();
        described.sort();
        listed.sort();
        assert_eq!(described, listed);
    }

    #[test]
    fn the_description_is_openapi_3_1_and_every_operation_may_fail() {
        let document = serde_json::to_value(crate::document()).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        assert_eq!(document["info"]["title"], "Keyframe");
        let mut names = std::collections::BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let at = format!("{method} {path}");
                assert!(operation["summary"].as_str().is_some_and(|summary| !summary.is_empty()), "{at}");
                let name = operation["operationId"].as_str().unwrap_or_else(|| panic!("{at} has no name"));
                assert!(names.insert(name.to_owned()), "{at}: {name} is there twice");
                let failure = &operation["responses"]["default"]["content"]["application/problem+json"];
                assert_eq!(failure["schema"]["$ref"], "#/components/schemas/Problem", "{at}");
            }
        }
        // Everything that is referred to is described.
        let text = document.to_string();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for name in text.split("#/components/schemas/").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            assert!(schemas.contains_key(name), "{name} is not described");
        }
    }

    #[test]
    fn only_an_administrator_has_every_right() {
        let member = Caller { name: "m".into(), admin: false };
        assert!(Right::Member.allows(&member) && !Right::Admin.allows(&member));
        assert!(Right::Admin.allows(&Caller::admin("a")));
    }
}
