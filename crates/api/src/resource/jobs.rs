//! Jobs.

use axum::http::StatusCode;
use keyframe_manager::Error;
use keyframe_manager::request::{JobFilter, JobView, Page, PageRequest};
use keyframe_model::agent::JobId;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::State;
use crate::ask::{Answer, Ask};
use crate::params::{Params, Part, Path, Wait};
use crate::problem::Problem;

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show)).routes(routes!(cancel))
}

fn id(text: &str) -> Result<JobId, Problem> {
    let shown: String = text.chars().take(80).collect();
    text.parse().map_err(|_| Error::not_found(format!("job '{}'", shown.escape_debug()), "job list").into())
}

/// List jobs, newest first
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", operation_id = "list_jobs", params(JobFilter, PageRequest),
    responses((status = 200, body = Page<JobView>)))]
async fn list(ask: Ask, part: Part<JobFilter>) -> Answer {
    ask.page(&ask.manager().list_jobs(ask.caller(), &part.filter, &part.page).await?)
}

/// Show a job, or wait until it has ended
#[utoipa::path(get, path = "/v1/jobs/{job}", tag = "jobs", operation_id = "show_job",
    params(("job" = String, Path), Wait), responses((status = 200, body = JobView)))]
async fn show(ask: Ask, Path(job): Path<String>, _: Params<Wait>) -> Answer {
    ask.job(id(&job)?, StatusCode::OK).await
}

/// Wish a job undone
#[utoipa::path(post, path = "/v1/jobs/{job}/cancel", tag = "jobs", operation_id = "cancel_job",
    params(("job" = String, Path), Wait), responses((status = 200, body = JobView), (status = 202, body = JobView)))]
async fn cancel(ask: Ask, Path(job): Path<String>, _: Params<Wait>) -> Answer {
    let job = id(&job)?;
    ask.manager().cancel_job(ask.call(), job).await?;
    ask.job(job, StatusCode::ACCEPTED).await
}
