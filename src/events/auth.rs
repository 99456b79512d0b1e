//! What HTTP callers must present, and whether they did.

use axum::http::header::{AUTHORIZATION, HeaderMap, HeaderValue};

use crate::setting::Secret;

#[derive(Debug, Clone)]
pub enum Auth {
    /// Nothing: the platform in front checks them.
    Off,
    Token(Secret),
    /// A token, but none is configured: HTTP is refused, queues are served.
    Unset,
}

/// Why a caller is not let in; the text says what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    #[error("present the token as `X-Internal-Auth: TOKEN` or `Authorization: Bearer TOKEN`")]
    NoToken,
    #[error("security.internal_auth_token is not set, so no HTTP job can be taken")]
    NotConfigured,
}

impl Auth {
    #[must_use]
    pub fn new(required: bool, token: Option<&Secret>) -> Self {
        match (required, token) {
            (false, _) => Self::Off,
            (true, Some(token)) => Self::Token(token.clone()),
            (true, None) => Self::Unset,
        }
    }

    /// Looks for `X-Internal-Auth: TOKEN`, then for `Authorization: Bearer TOKEN`.
    ///
    /// # Errors
    /// [`Stranger`] for a caller who is not let in.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Stranger> {
        let token = match self {
            Self::Off => return Ok(()),
            Self::Unset => return Err(Stranger::NotConfigured),
            Self::Token(token) => token,
        };
        let internal = headers.get("x-internal-auth").map(HeaderValue::as_bytes);
        let given = internal.or_else(|| bearer(headers)).unwrap_or_default();
        if token.matches(given) { Ok(()) } else { Err(Stranger::NoToken) }
    }
}

/// The name of a scheme is the same in any case (RFC 9110, 11.1).
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}
