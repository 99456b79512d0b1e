//! What a queue's URL says: where its server is, in which region, and whether it is a FIFO queue.

use url::Url;

use crate::setting::SettingError;
use crate::shown;

const SETTING: &str = "sources.sqs.queue_url";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueueUrl {
    pub(super) url: String,
    /// Scheme, host and port: the server that the queue belongs to.
    pub(super) endpoint: String,
    /// Where the host is named as AWS names them: `sqs.{region}.…`.
    pub(super) region: Option<String>,
    pub(super) fifo: bool,
}

impl QueueUrl {
    pub(super) fn parse(text: &str) -> Result<Self, SettingError> {
        let wrong = || {
            let example = "https://sqs.us-east-1.amazonaws.com/123456789012/image_generation";
            SettingError::new(SETTING, format!("must be the URL of a queue such as {example}, got {}", shown::text(text)))
        };
        let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https")).ok_or_else(wrong)?;
        let name = url.path_segments().and_then(|mut parts| parts.next_back()).filter(|name| !name.is_empty());
        let fifo = is_fifo(name.ok_or_else(wrong)?);
        let mut labels = url.host_str().ok_or_else(wrong)?.split('.');
        let region = labels.find(|label| matches!(*label, "sqs" | "sqs-fips")).and_then(|_| labels.next()).map(str::to_owned);
        Ok(Self { url: text.to_owned(), endpoint: url.origin().ascii_serialization(), region, fifo })
    }
}

/// By the name's ending, which AWS asks of FIFO queues and of no others; `queue` is a name or a URL.
pub(super) fn is_fifo(queue: &str) -> bool {
    queue.rsplit_once('.').is_some_and(|(_, ending)| ending == "fifo")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_and_region_are_in_the_url() {
        let table = [
            ("https://sqs.eu-central-1.amazonaws.com/123/jobs", "https://sqs.eu-central-1.amazonaws.com", Some("eu-central-1")),
            ("https://sqs.cn-north-1.amazonaws.com.cn/1/j.fifo", "https://sqs.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
            (
                "https://vpce-1-2.sqs.us-west-2.vpce.amazonaws.com/1/jobs",
                "https://vpce-1-2.sqs.us-west-2.vpce.amazonaws.com",
                Some("us-west-2"),
            ),
            ("http://127.0.0.1:5000/123/jobs", "http://127.0.0.1:5000", None),
        ];
        for (url, endpoint, region) in table {
            let address = QueueUrl::parse(url).unwrap();
            assert_eq!((address.endpoint.as_str(), address.region.as_deref()), (endpoint, region), "{url}");
            assert_eq!(address.fifo, url.contains(".fifo"));
        }
    }

    #[test]
    fn what_is_no_queue_is_named() {
        for wrong in ["image_generation", "arn:aws:sqs:us-east-1:123:jobs", "https://sqs.us-east-1.amazonaws.com/", "ftp://a/b"]
        {
            let error = QueueUrl::parse(wrong).unwrap_err();
            assert_eq!(error.setting, SETTING);
            assert!(error.problem.contains(wrong), "{error}");
        }
    }
}
