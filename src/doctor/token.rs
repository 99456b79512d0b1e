//! Who may hand jobs in by HTTP.

use super::finding::Finding;
use crate::config::Config;

const CHECK: &str = "token";

pub(super) fn check(config: &Config) -> Finding {
    let security = &config.security;
    match &security.internal_auth_token {
        _ if !security.require_auth => Finding::warn(
            CHECK,
            "security.require_auth is false: whoever reaches the port hands jobs in",
            "leave it so only behind a gateway that checks callers",
        ),
        Some(token) if !token.reveal().bytes().all(|byte| byte.is_ascii_graphic()) => Finding::fail(
            CHECK,
            "security.internal_auth_token has a character that no caller can send in a header, such as the end of a line",
            "set INTERNAL_API_TOKEN to visible ASCII without blanks",
        ),
        Some(_) => Finding::ok(CHECK, "callers present security.internal_auth_token"),
        None => Finding::warn(
            CHECK,
            "security.internal_auth_token is not set: jobs by HTTP are refused with 503, queues are served",
            "set INTERNAL_API_TOKEN, such as to what `openssl rand -hex 24` prints",
        ),
    }
}
