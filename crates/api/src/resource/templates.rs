//! Templates.

use keyframe_manager::request::{
    JobView, Page, PageRequest, TemplateCreate, TemplateFilter, TemplateUpdate, TemplateView,
};
use keyframe_model::agent::Generation;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::State;
use crate::ask::{Answer, Ask, Versioned};
use crate::body::Body;
use crate::params::{Params, Part, Path, Wait};

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(show, update, delete))
}

impl Versioned for TemplateView {
    fn generation(&self) -> Generation {
        self.template.generation
    }
}

/// List templates
#[utoipa::path(get, path = "/v1/templates", tag = "templates", operation_id = "list_templates",
    params(TemplateFilter, PageRequest), responses((status = 200, body = Page<TemplateView>)))]
async fn list(ask: Ask, part: Part<TemplateFilter>) -> Answer {
    ask.page(&ask.manager().list_templates(ask.caller(), &part.filter, &part.page).await?)
}

/// Make a template of a stopped machine or of a snapshot
#[utoipa::path(post, path = "/v1/templates", tag = "templates", operation_id = "create_template", params(Wait),
    request_body = TemplateCreate, responses((status = 202, body = JobView)))]
async fn create(ask: Ask, _: Params<Wait>, Body(wish): Body<TemplateCreate>) -> Answer {
    ask.ordered(ask.manager().create_template(ask.call(), wish).await?).await
}

/// Show a template
#[utoipa::path(get, path = "/v1/templates/{template}", tag = "templates", operation_id = "show_template",
    params(("template" = String, Path)), responses((status = 200, body = TemplateView)))]
async fn show(ask: Ask, Path(template): Path<String>) -> Answer {
    let template = ask.template(&template).await?;
    ask.found(&ask.manager().template(ask.caller(), template).await?)
}

/// Change what is said about a template
#[utoipa::path(patch, path = "/v1/templates/{template}", tag = "templates", operation_id = "update_template",
    params(("template" = String, Path)), request_body = TemplateUpdate, responses((status = 200, body = TemplateView)))]
async fn update(ask: Ask, Path(template): Path<String>, Body(wish): Body<TemplateUpdate>) -> Answer {
    let template = ask.template(&template).await?;
    ask.found(&ask.manager().update_template(ask.call(), template, wish).await?)
}

/// Delete a template; machines made of it stay whole
#[utoipa::path(delete, path = "/v1/templates/{template}", tag = "templates", operation_id = "delete_template",
    params(("template" = String, Path), Wait), responses((status = 202, body = JobView)))]
async fn delete(ask: Ask, Path(template): Path<String>, _: Params<Wait>) -> Answer {
    let template = ask.template(&template).await?;
    ask.ordered(ask.manager().delete_template(ask.call(), template).await?).await
}
