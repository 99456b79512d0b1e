//! The operator's own services: their addresses and tokens, checked at start.

use url::Url;

use crate::setting::{Secret, SettingError};
use crate::shown;

/// Where webhooks go that have no `callback.url`.
#[derive(Debug, Clone)]
pub(super) struct Backend {
    /// Ends in a slash.
    pub(super) base: Url,
    pub(super) token: Secret,
}

impl Backend {
    pub(super) fn new(settings: &super::Settings) -> Result<Option<Self>, SettingError> {
        const SHORTEST_TOKEN: usize = 32;
        let Some(address) = &settings.backend_api_url else { return Ok(None) };
        let base = base("notify.backend_api_url", address)?;
        let token = settings.internal_api_token.clone().ok_or_else(|| {
            SettingError::new("notify.internal_api_token", "must be set next to backend_api_url (INTERNAL_API_TOKEN)")
        })?;
        let characters = token.reveal().chars().count();
        if characters < SHORTEST_TOKEN {
            let problem = format!("must have at least {SHORTEST_TOKEN} characters, has {characters} (INTERNAL_API_TOKEN)");
            return Err(SettingError::new("notify.internal_api_token", problem));
        }
        check_header("notify.internal_api_token", &token)?;
        Ok(Some(Self { base, token }))
    }
}

/// The address as one that paths can be joined to.
pub(super) fn base(setting: &str, address: &str) -> Result<Url, SettingError> {
    let url = Url::parse(&format!("{}/", address.trim_end_matches('/'))).ok();
    url.filter(|url| matches!(url.scheme(), "http" | "https")).ok_or_else(|| {
        SettingError::new(
            setting,
            format!("must be an address such as https://backend.example.com, got {}", shown::text(address)),
        )
    })
}

pub(super) fn check_header(setting: &str, token: &Secret) -> Result<(), SettingError> {
    match reqwest::header::HeaderValue::from_str(token.reveal()) {
        Ok(_) => Ok(()),
        Err(_) => Err(SettingError::new(setting, "must be visible ASCII characters only")),
    }
}
