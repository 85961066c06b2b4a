//! The description of the interface (OpenAPI 3.1), made of the handlers themselves.

use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Content, Ref, RefOr, Response};

use crate::problem::Problem;
use crate::resource;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Keyframe",
        description = "Virtual machines with instant snapshots and clones. Long work answers 202 with a job; see its \
                       `Location`. Wherever a path has a machine, template or disk, its identifier or its name will do; \
                       a snapshot is an identifier or `MACHINE@SNAPSHOT`. Sizes are bytes, times microseconds. A call that \
                       orders a job can be repeated, word for word, with the same `Idempotency-Key` and is answered with the \
                       first one's, also when what it names is gone by then; a PATCH that orders none sets what it says \
                       however often it is repeated, and ignores the key. `If-Match` is compared with the generation, which \
                       begins the `ETag`, of the machine, snapshot or template that the address names, or for what is made \
                       of one with that of its source; `If-None-Match` with all that is shown.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(Problem)),
    security(("token" = []))
)]
struct Base;

/// The whole description.
pub fn document() -> utoipa::openapi::OpenApi {
    with_problems(resource::routes().into_openapi())
}

/// What the routes' own descriptions are added to.
pub(crate) fn base() -> utoipa::openapi::OpenApi {
    let mut document = Base::openapi();
    document.info.version = env!("CARGO_PKG_VERSION").to_owned();
    let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    document.components.get_or_insert_default().add_security_scheme("token", SecurityScheme::Http(token));
    document
}

/// Adds to every operation that it may fail with a problem.
pub(crate) fn with_problems(mut document: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    let content = Content::new(Some(RefOr::Ref(Ref::from_schema_name("Problem"))));
    let mut problem = Response::new("It was not done, and this is why.");
    problem.content.insert("application/problem+json".to_owned(), RefOr::T(content));
    for item in document.paths.paths.values_mut() {
        let all = [&mut item.get, &mut item.post, &mut item.patch, &mut item.delete];
        for operation in all.into_iter().flatten() {
            operation.responses.responses.insert("default".to_owned(), RefOr::T(problem.clone()));
        }
    }
    document
}
