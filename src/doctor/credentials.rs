//! Whether the provider chain gives credentials for the bucket, which, and for how long.

use std::time::{Duration, SystemTime};

use super::finding::Finding;
use crate::aws::identity::{Identity, identity};
use crate::config::Config;

const CHECK: &str = "credentials";
/// Renewal is at work by then, where there is one.
const SOON: Duration = Duration::from_mins(5);
const HOW: &str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or store.access_key_id and secret_access_key, or give the function a role";

pub(super) async fn check(config: &Config) -> Finding {
    let shared = match config.store.access().load().await {
        Ok(shared) => shared,
        Err(error) => return Finding::fail(CHECK, error.to_string(), "set both keys or none"),
    };
    match identity(&shared).await {
        Err(problem) => Finding::fail(CHECK, format!("none were found ({problem})"), HOW),
        Ok(identity) => judge(&identity, SystemTime::now()),
    }
}

fn judge(identity: &Identity, now: SystemTime) -> Finding {
    let Identity { key_ends_in, region, .. } = identity;
    let found = match key_ends_in.as_str() {
        "" => format!("found; region {region}"),
        ending => format!("found, their key id ends in {ending}; region {region}"),
    };
    let Some(expires) = identity.expires else { return Finding::ok(CHECK, found) };
    match expires.duration_since(now) {
        Err(_) => Finding::fail(
            CHECK,
            format!("{found}; they have expired"),
            "bring new ones, and look whether this machine's clock is right",
        ),
        Ok(left) if left < SOON => Finding::warn(
            CHECK,
            format!("{found}; they expire in {} s", left.as_secs()),
            "give the function a role, whose credentials are renewed",
        ),
        Ok(left) => Finding::ok(CHECK, format!("{found}; they expire in {} min", left.as_secs() / 60)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    #[test]
    fn temporary_credentials_are_judged_by_what_is_left() {
        let now = SystemTime::now();
        let judged = |expires| {
            let identity = Identity { key_ends_in: "ABCD".into(), expires, region: "eu-west-1".into() };
            judge(&identity, now).state
        };
        assert_eq!(judged(None), State::Ok);
        assert_eq!(judged(Some(now + Duration::from_hours(1))), State::Ok);
        assert_eq!(judged(Some(now + Duration::from_secs(30))), State::Warn);
        assert_eq!(judged(Some(now - Duration::from_secs(1))), State::Fail);
    }
}
