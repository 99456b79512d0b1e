//! The guarded client: what callers' addresses may and may not reach.

use atelier::job::outcome::{JobError, RetryPolicy};
use atelier::outbound::error::OutboundError;
use atelier::outbound::{Found, Outbound, Settings};
use url::Url;

use crate::servers::http::{Answer, HttpServer};

pub(crate) fn outbound(allow: &[&str]) -> Outbound {
    let allow = allow.iter().map(|entry| (*entry).to_owned()).collect();
    Outbound::new(&Settings { allow_http: true, allow, read_timeout_ms: 2_000, ..Settings::default() }).expect("settings")
}

async fn refusal(outbound: &Outbound, url: &str) -> JobError {
    let url = Url::parse(url).expect("an address");
    outbound.get(&url, None).await.expect_err("must be refused").for_field("lora[0].url")
}

#[tokio::test]
async fn plain_http_is_refused_unless_allowed() {
    let strict = Outbound::new(&Settings::default()).expect("settings");
    let error = refusal(&strict, "http://example.com/x").await;
    assert_eq!(error.retry_policy(), RetryPolicy::Terminal);
    assert_eq!(error.to_string(), "lora[0].url: must be an https:// address, got the scheme \"http\"");
}

#[tokio::test]
async fn addresses_in_any_spelling_are_refused_before_a_connection() {
    let server = HttpServer::start(&[Answer::status(200)]).await;
    let port = server.address.port();
    let outbound = outbound(&[]);
    let hosts = [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[::]",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "10.0.0.1",
        "100.64.0.1",
        "localhost",
        "LOCALHOST",
    ];
    for host in hosts {
        let error = refusal(&outbound, &format!("http://{host}:{port}/")).await;
        assert_eq!(error.retry_policy(), RetryPolicy::Terminal, "{host}: {error}");
        assert_eq!(error.field(), Some("lora[0].url"), "{host}");
        assert!(error.to_string().contains("must lead to a public address"), "{host}: {error}");
    }
    assert!(server.requests().is_empty(), "a refused address was reached");
}

#[tokio::test]
async fn the_operator_may_allow_an_address_or_a_name() {
    let server = HttpServer::start(&[Answer::status(200)]).await;
    let by_name = Url::parse(&format!("http://localhost:{}/", server.address.port())).expect("an address");
    assert!(outbound(&["127.0.0.1/32"]).get(&server.url("/"), None).await.is_ok());
    assert!(outbound(&["localhost"]).get(&by_name, None).await.is_ok());
    assert!(outbound(&["localhost"]).get(&server.url("/"), None).await.is_err(), "a name opens no address");
}

#[tokio::test]
async fn redirects_are_followed_to_allowed_places_only() {
    let inner = HttpServer::start_at("127.0.0.2:0", &[Answer::status(200)]).await;
    let to_inner = inner.url("/secret").to_string();
    let outer = HttpServer::start(&[
        Answer::with(302, &[("location", "/next")], ""),
        Answer::with(307, &[("location", &to_inner)], ""),
    ])
    .await;
    let outbound = outbound(&["127.0.0.1/32"]);
    let error = outbound.get(&outer.url("/"), None).await.expect_err("must be refused");
    assert!(matches!(error, OutboundError::Refused(_)), "{error}");
    assert_eq!(outer.requests().iter().map(|request| request.path.clone()).collect::<Vec<_>>(), ["/", "/next"]);
    assert!(inner.requests().is_empty(), "the redirect led to a closed address");
}

#[tokio::test]
async fn redirects_end_somewhere() {
    let server = HttpServer::start(&[Answer::with(302, &[("location", "/again")], "")]).await;
    let error = outbound(&["127.0.0.1"]).get(&server.url("/"), None).await.expect_err("must end");
    assert!(matches!(error, OutboundError::TooManyRedirects { max: 3 }), "{error}");
    assert_eq!(server.requests().len(), 4);
    assert_eq!(error.for_field("lora[0].url").retry_policy(), RetryPolicy::Terminal);
}

#[tokio::test]
async fn only_what_can_change_is_worth_another_try() {
    let server = HttpServer::start(&[Answer::status(200)]).await;
    let outbound = outbound(&["127.0.0.1"]);
    for (status, retry_policy) in [
        (404, RetryPolicy::Terminal),
        (403, RetryPolicy::Terminal),
        (401, RetryPolicy::Terminal),
        (503, RetryPolicy::Retry),
        (429, RetryPolicy::Retry),
    ] {
        server.script(&[Answer::status(status)]);
        let error = outbound.get(&server.url("/"), None).await.expect_err("no file").for_field("lora[0].url");
        assert_eq!(error.retry_policy(), retry_policy, "{error}");
        assert!(error.to_string().contains(&status.to_string()), "{error}");
    }
    assert_eq!(server.requests().len(), 5, "the client itself tries once");
    server.script(&[Answer::HangUp]);
    let error = outbound.get(&server.url("/"), None).await.expect_err("no answer").for_field("lora[0].url");
    assert_eq!(error.retry_policy(), RetryPolicy::Retry, "{error}");
    server.script(&[Answer::Never]);
    let error = outbound.get(&server.url("/"), None).await.expect_err("no answer").for_field("lora[0].url");
    assert!(error.to_string().contains("did not answer in time"), "{error}");
}

#[tokio::test]
async fn a_known_file_is_asked_for_by_its_etag() {
    let server = HttpServer::start(&[Answer::with(200, &[("etag", "\"one\"")], "abc"), Answer::status(304)]).await;
    let outbound = outbound(&["127.0.0.1"]);
    let Ok(Found::File { etag: Some(etag), .. }) = outbound.get(&server.url("/"), None).await else { panic!("no file") };
    let again = outbound.get(&server.url("/"), Some(&etag)).await;
    assert!(matches!(again, Ok(Found::NotModified)), "{again:?}");
    assert_eq!(server.requests()[1].header("if-none-match"), Some("\"one\""));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_tried_again_later() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
    let url = Url::parse(&format!("http://127.0.0.1:{port}/")).expect("an address");
    let error = outbound(&["127.0.0.1"]).get(&url, None).await.expect_err("no one there").for_field("lora[0].url");
    assert_eq!(error.retry_policy(), RetryPolicy::Retry);
    assert!(error.to_string().contains("could not be reached"), "{error}");
}

/// Raw bytes are what the server gets back, percent-encoded, whatever they are.
#[tokio::test]
async fn a_redirect_in_utf8_is_followed() {
    let server = HttpServer::start(&[
        Answer::with(302, &[("location", "/größe/灯台.png?name=Ä&size=1")], ""),
        Answer::with(301, &[("location", "relativ/é")], ""),
        Answer::with(200, &[], "abc"),
    ])
    .await;
    let found = outbound(&["127.0.0.1"]).get(&server.url("/start"), None).await;
    assert!(matches!(found, Ok(Found::File { .. })), "{found:?}");
    let paths: Vec<String> = server.requests().into_iter().map(|request| request.path).collect();
    let expected = ["/start", "/gr%C3%B6%C3%9Fe/%E7%81%AF%E5%8F%B0.png?name=%C3%84&size=1", "/gr%C3%B6%C3%9Fe/relativ/%C3%A9"];
    assert_eq!(paths, expected);
}
