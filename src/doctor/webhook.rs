//! Whether someone answers where notifications go: at the operator's own addresses, and at those that a caller would give.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use url::Url;

use super::finding::Finding;
use super::within;
use crate::config::Config;
use crate::notify::Notifier;
use crate::outbound::Outbound;
use crate::outbound::error::OutboundError;

const CHECK: &str = "webhook";

pub(super) async fn check(config: &Config, callbacks: &[Url], limit: Duration) -> Vec<Finding> {
    let own = [
        ("notify.backend_api_url", &config.notify.backend_api_url),
        ("asset_service.callback_url", &config.asset_service.callback_url),
        ("load_balancer.url", &config.load_balancer.url),
    ];
    let outbound = match Outbound::new(&config.outbound) {
        Ok(outbound) => outbound,
        Err(error) => return vec![Finding::fail(CHECK, error.to_string(), "correct this setting")],
    };
    let notifier = match Notifier::new(&config.notify, outbound.clone()) {
        Ok(notifier) => notifier,
        Err(error) => return vec![Finding::fail(CHECK, error.to_string(), "correct this setting")],
    };
    let own = own.into_iter().filter_map(|(key, address)| Some((key, address.as_deref()?)));
    let own = join_all(own.map(|(key, address)| within(limit, CHECK, check_own(&notifier, key, address)))).await;
    let callers = join_all(callbacks.iter().map(|url| within(limit, CHECK, check_callback(&outbound, url)))).await;
    let findings = [own, callers].concat();
    if findings.is_empty() {
        let none = "no BACKEND_API_URL, asset service or load balancer is set; --webhook URL checks a caller's address";
        return vec![Finding::skip(CHECK, none)];
    }
    findings
}

async fn check_own(notifier: &Notifier, key: &str, address: &str) -> Finding {
    let Ok(url) = Url::parse(address) else {
        return Finding::fail(CHECK, format!("{key}: {address:?} is no address"), "write it as https://backend.example");
    };
    judge(&format!("{key}, {}", shown(&url)), &url, notifier.reach(&url).await)
}

async fn check_callback(outbound: &Outbound, url: &Url) -> Finding {
    let answer = match outbound.request(Method::HEAD, url) {
        Ok(request) => outbound.send(request).await.map(|response| response.status()),
        Err(error) => Err(error),
    };
    judge(&shown(url), url, answer)
}

/// Scheme, host and port: a path or a query of someone's can hold a token.
fn shown(url: &Url) -> String {
    url.origin().ascii_serialization()
}

fn judge(place: &str, url: &Url, answer: Result<StatusCode, OutboundError>) -> Finding {
    match answer {
        Ok(status) if url.scheme() == "https" => {
            Finding::ok(CHECK, format!("{place}: resolves, its certificate is valid, answers ({})", status.as_u16()))
        }
        Ok(status) => Finding::ok(CHECK, format!("{place}: resolves, answers ({}), without TLS", status.as_u16())),
        Err(error @ OutboundError::Refused(_)) => Finding::fail(
            CHECK,
            format!("{place}: {error}"),
            "have callers give a public https address, or allow this one (outbound.allow, outbound.allow_http)",
        ),
        Err(error) => {
            let fix = "correct the address, start the service, open the way to it, or renew its certificate (and look at this machine's clock)";
            Finding::fail(CHECK, format!("{place}: {error}"), fix)
        }
    }
}
