//! Whether someone answers at an address of the operator's own, over the very client that sends notifications there.

use reqwest::StatusCode;
use url::Url;

use super::Notifier;
use crate::outbound::error::OutboundError;

impl Notifier {
    /// Asks for the head alone. Any answer counts: the name resolves, the port is open, the certificate is valid.
    ///
    /// # Errors
    /// What kept an answer from coming.
    pub async fn reach(&self, url: &Url) -> Result<StatusCode, OutboundError> {
        let answer = self.client.head(url.clone()).send().await;
        Ok(answer.map_err(|error| OutboundError::Connection(error.without_url()))?.status())
    }
}
