//! Tokens: who may speak to the manager. Only their hashes are kept; a token itself is a long random text, so a plain hash of it
//! cannot be searched through.

use std::fmt::Write as _;

use keyframe_agent_api::{Generation, Timestamp};
use sha2::{Digest, Sha256};
use sqlx::any::AnyRow;
use uuid::Uuid;

use crate::event::{Change, EventKind};
use crate::sql::{Columns, args};
use crate::{Error, ErrorKind, Result, Transaction};

/// A token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Token {
    /// Never changes.
    pub id: Uuid,
    /// For people; unique.
    pub name: String,
    /// Of the secret.
    pub hash: TokenHash,
    /// The account it speaks for; none speaks for the installation.
    pub owner: Option<String>,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends.
    pub expires: Option<Timestamp>,
    /// When it was last seen.
    pub used: Option<Timestamp>,
}

/// The SHA-256 of a token's secret, in hexadecimal.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TokenHash(String);

impl TokenHash {
    /// The hash of a secret.
    pub fn of(secret: &str) -> TokenHash {
        let mut text = String::with_capacity(64);
        for byte in Sha256::digest(secret.as_bytes()) {
            write!(text, "{byte:02x}").unwrap_or_default();
        }
        TokenHash(text)
    }

    /// 64 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Transaction {
    /// Adds a token.
    pub async fn insert_token(&mut self, token: &Token) -> Result<()> {
        let sql = "INSERT INTO tokens (id, name, hash, owner, created, expires, used) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7)";
        let args = args![
            token.id.to_string(),
            token.name.as_str(),
            token.hash.as_str(),
            token.owner.clone(),
            token.created,
            token.expires,
            token.used
        ];
        let taken = || format!("there is a token named {} already; choose another name", token.name);
        self.execute("add a token", sql, args).await.map_err(|e| e.taken(taken))?;
        self.note(EventKind::Token, token.id, Generation(0), Change::Made);
        Ok(())
    }

    /// The token with this hash. Whether it has expired is for the caller to see.
    pub async fn token_by_hash(&mut self, hash: &TokenHash) -> Result<Option<Token>> {
        let sql = "SELECT * FROM tokens WHERE hash = $1";
        self.row_if_any("find a token", sql, args![hash.as_str()]).await?.as_ref().map(read).transpose()
    }

    /// All tokens, in the order of their names.
    pub async fn tokens(&mut self) -> Result<Vec<Token>> {
        self.rows("list tokens", "SELECT * FROM tokens ORDER BY name", args![]).await?.iter().map(read).collect()
    }

    /// Notes that a token was used; no event.
    pub async fn touch_token(&mut self, id: Uuid, at: Timestamp) -> Result<()> {
        let sql = "UPDATE tokens SET used = $2 WHERE id = $1";
        self.execute("note a token's use", sql, args![id.to_string(), at]).await.map(drop)
    }

    /// Removes a token.
    pub async fn delete_token(&mut self, id: Uuid) -> Result<()> {
        if self.execute("remove a token", "DELETE FROM tokens WHERE id = $1", args![id.to_string()]).await? == 0 {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no token {id}")));
        }
        self.note(EventKind::Token, id, Generation(0), Change::Gone);
        Ok(())
    }
}

fn read(row: &AnyRow) -> Result<Token> {
    Ok(Token {
        id: row.parsed("id")?,
        name: row.text("name")?,
        hash: TokenHash(row.text("hash")?),
        owner: row.text_or_null("owner")?,
        created: Timestamp(row.int("created")?),
        expires: row.int_or_null("expires")?.map(Timestamp),
        used: row.int_or_null("used")?.map(Timestamp),
    })
}
