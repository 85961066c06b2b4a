//! Tokens: who may ask through TCP.

use axum::Json;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use keyframe_catalog::{Token, TokenHash};
use keyframe_manager::{Error, ErrorKind};
use keyframe_model::Name;
use keyframe_model::agent::{Micros, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::State;
use crate::ask::{Answer, Ask};
use crate::body::Body;
use crate::params::Path;
use crate::problem::Problem;
use crate::token::ADMIN;

/// A token to be made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenCreate {
    /// Unique among tokens; says what it is for.
    pub name: Name,
    /// How long it is good for; for ever when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_for: Option<Micros>,
}

/// A token, without its secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    /// Which.
    pub id: Uuid,
    /// What it is for.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// When it was used last, roughly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Timestamp>,
}

/// A new token.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TokenMade {
    /// The token.
    #[serde(flatten)]
    pub token: TokenView,
    /// What to show in requests. It is not stored and cannot be shown again.
    pub secret: String,
}

impl From<Token> for TokenView {
    fn from(token: Token) -> TokenView {
        let Token { id, name, created, expires, used, .. } = token;
        TokenView { id, name, created, expires, used }
    }
}

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(delete))
}

/// List tokens
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", operation_id = "list_tokens",
    responses((status = 200, body = Vec<TokenView>)))]
async fn list(ask: Ask) -> Answer {
    let tokens = ask.manager().catalog().read().await?.tokens().await?;
    ask.done(&tokens.into_iter().map(TokenView::from).collect::<Vec<_>>())
}

/// Make a token; its secret is in this answer only
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", operation_id = "create_token", request_body = TokenCreate,
    responses((status = 201, body = TokenMade)))]
async fn create(ask: Ask, Body(wish): Body<TokenCreate>) -> Answer {
    let secret = crate::token::make().map_err(|error| {
        let source = Some(Box::new(error) as Box<dyn std::error::Error + Send + Sync>);
        Error { kind: ErrorKind::Internal, message: "there is no randomness".into(), source }
    })?;
    let created = Timestamp::now();
    let later = |span: Micros| Timestamp(created.0.saturating_add(i64::try_from(span.0).unwrap_or(i64::MAX)));
    let token = Token {
        id: Uuid::now_v7(),
        name: wish.name.into(),
        hash: TokenHash::of(&secret),
        owner: None,
        created,
        expires: wish.valid_for.map(later),
        used: None,
    };
    let mut catalog = ask.manager().catalog().write().await?;
    catalog.insert_token(&token).await?;
    catalog.commit().await?;
    Ok((StatusCode::CREATED, Json(TokenMade { token: token.into(), secret })).into_response())
}

/// Delete a token, by its identifier or name
#[utoipa::path(delete, path = "/v1/tokens/{token}", tag = "tokens", operation_id = "delete_token",
    params(("token" = String, Path)), responses((status = 204)))]
async fn delete(ask: Ask, Path(name): Path<String>) -> Answer {
    let mut catalog = ask.manager().catalog().write().await?;
    let found = catalog.tokens().await?.into_iter().find(|token| token.name == name || token.id.to_string() == name);
    let shown: String = name.chars().take(80).collect();
    let missing = || Problem::new(ErrorKind::NotFound, format!("there is no token '{}'", shown.escape_debug()));
    if found.as_ref().is_some_and(|token| token.name == ADMIN) {
        let message =
            "the token admin is the one in DIR/admin.token; to replace it, remove that file and restart the manager";
        return Err(Problem::new(ErrorKind::State, message));
    }
    catalog.delete_token(found.ok_or_else(missing)?.id).await?;
    catalog.commit().await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
