//! The signatures of presigned URLs: the query parameters that are new each time although the file is the same.
//!
//! Only a complete known set is taken away. A part of one is no signature that a server could check, so it may as well name a file.

use std::borrow::Cow;

use ::url::form_urlencoded;

type Pair<'a> = (Cow<'a, str>, Cow<'a, str>);

/// One way to sign a URL.
struct Scheme {
    /// All of them belong to a signature.
    required: &'static [&'static str],
    /// At least one of these too; where it is empty, nothing more is asked for.
    one_of: &'static [&'static str],
    /// May come with it.
    optional: &'static [&'static str],
    /// All names that begin so belong to it.
    prefix: Option<&'static str>,
}

/// Names are compared by their case, as the servers do.
const SCHEMES: &[Scheme] = &[
    // AWS Signature Version 4, "Authenticating requests: using query parameters".
    Scheme {
        required: &[
            "X-Amz-Algorithm",
            "X-Amz-Credential",
            "X-Amz-Date",
            "X-Amz-Expires",
            "X-Amz-SignedHeaders",
            "X-Amz-Signature",
        ],
        one_of: &[],
        optional: &[],
        prefix: Some("X-Amz-"),
    },
    // AWS Signature Version 2, "Query string request authentication alternative".
    Scheme {
        required: &["AWSAccessKeyId", "Signature", "Expires"],
        one_of: &[],
        optional: &["x-amz-security-token"],
        prefix: None,
    },
    // CloudFront, with a canned policy (Expires) or a custom one (Policy).
    Scheme {
        required: &["Signature", "Key-Pair-Id"],
        one_of: &["Expires", "Policy"],
        optional: &["Hash-Algorithm"],
        prefix: None,
    },
    // Google Cloud Storage, V4 signing process.
    Scheme {
        required: &[
            "X-Goog-Algorithm",
            "X-Goog-Credential",
            "X-Goog-Date",
            "X-Goog-Expires",
            "X-Goog-SignedHeaders",
            "X-Goog-Signature",
        ],
        one_of: &[],
        optional: &[],
        prefix: Some("X-Goog-"),
    },
    // Google Cloud Storage, V2 signing process.
    Scheme { required: &["GoogleAccessId", "Expires", "Signature"], one_of: &[], optional: &[], prefix: None },
    // Azure Storage: a service's or a user's delegated SAS, then an account's; with an end, or a stored policy that has one.
    Scheme { required: &["sv", "sr", "sig"], one_of: &["se", "si"], optional: AZURE, prefix: None },
    Scheme { required: &["sv", "ss", "srt", "sig"], one_of: &["se"], optional: AZURE, prefix: None },
];

/// What a shared access signature may have besides. `rscc`, `rscd` and the like, which set the answer's headers, stay.
const AZURE: &[&str] = &[
    "sp", "st", "spr", "sip", "skoid", "sktid", "skt", "ske", "sks", "skv", "skdutid", "sduoid", "saoid", "suoid", "scid",
    "sdd", "ses",
];

impl Scheme {
    fn signs(&self, pairs: &[Pair<'_>]) -> bool {
        let has = |name: &&str| pairs.iter().any(|(given, value)| given == name && !value.is_empty());
        self.required.iter().all(has) && (self.one_of.is_empty() || self.one_of.iter().any(has))
    }

    fn owns(&self, name: &str) -> bool {
        let named = [self.required, self.one_of, self.optional].into_iter().any(|names| names.contains(&name));
        named || self.prefix.is_some_and(|prefix| name.starts_with(prefix))
    }
}

/// The parts of a query, as written, without those of every signature that is complete in it, in their order.
pub(super) fn without<'a>(parts: &[&'a str]) -> Vec<&'a str> {
    let pairs: Vec<Pair<'a>> =
        parts.iter().map(|part| form_urlencoded::parse(part.as_bytes()).next().unwrap_or_default()).collect();
    let complete: Vec<&Scheme> = SCHEMES.iter().filter(|scheme| scheme.signs(&pairs)).collect();
    let named = parts.iter().zip(&pairs);
    named.filter(|(_, (name, _))| !complete.iter().any(|scheme| scheme.owns(name))).map(|(part, _)| *part).collect()
}

#[cfg(test)]
mod tests {
    use super::super::url::AssetUrl;

    const SIGV4: &str = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=K%2F20260101%2Feu-west-1%2Fs3%2Faws4_request\
                         &X-Amz-Date=20260101T000000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host&X-Amz-Signature=";
    const GOOG: &str = "X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential=a%40b%2F20260101%2Fauto%2Fstorage%2Fgoog4_request\
                        &X-Goog-Date=20260101T000000Z&X-Goog-Expires=900&X-Goog-SignedHeaders=host&X-Goog-Signature=";

    fn identity(query: &str) -> String {
        AssetUrl::parse(&format!("https://files.example/a/b.png?{query}")).unwrap().identity()
    }

    /// A query signed in each of the ways, twice.
    fn signed(turn: &str) -> Vec<String> {
        vec![
            format!("{SIGV4}{turn}"),
            format!("{SIGV4}{turn}&X-Amz-Security-Token=t{turn}"),
            format!("AWSAccessKeyId=AKIA&Signature={turn}%3D&Expires=18{turn}"),
            format!("AWSAccessKeyId=ASIA&Signature={turn}%3D&Expires=18{turn}&x-amz-security-token=t{turn}"),
            format!("Expires=18{turn}&Signature={turn}__&Key-Pair-Id=K2"),
            format!("Policy=eyJ{turn}&Signature={turn}__&Key-Pair-Id=K2&Hash-Algorithm=SHA256"),
            format!("{GOOG}{turn}"),
            format!("GoogleAccessId=a%40b&Expires=18{turn}&Signature={turn}"),
            format!("sv=2024-11-04&sr=b&sp=r&st=2026-01-{turn}&se=2027-01-{turn}&spr=https&sig={turn}"),
            format!("sv=2024-11-04&sr=b&si=policy&sig={turn}"),
            format!("sv=2024-11-04&ss=b&srt=o&sp=r&se=2027-01-{turn}&sig={turn}"),
            format!(
                "skoid=a&sktid=b&skt=2026&ske=2027&sks=b&skv=2024-11-04&sv=2024-11-04&sr=b&sp=r&se=2027-01-{turn}&sig={turn}"
            ),
        ]
    }

    #[test]
    fn a_new_signature_names_the_same_file() {
        for (first, second) in signed("11").iter().zip(signed("22")) {
            assert_eq!(identity(first), "https://files.example/a/b.png", "{first}");
            assert_eq!(identity(first), identity(&second));
        }
    }

    /// Bytes that are no UTF-8 name files as well.
    #[test]
    fn queries_of_other_encodings_are_told_apart() {
        let queries = ["f=%C4%E3", "f=%BA%C3", "f=%FF", "f=%FE", "f=a", "f=1&g=2", "g=2&f=1", ""];
        let identities: std::collections::BTreeSet<_> = queries.iter().map(|query| identity(query)).collect();
        assert_eq!(identities.len(), queries.len());
        assert_eq!(identity("f=a+b&X-Amz-Date=1"), "https://files.example/a/b.png?f=a+b&X-Amz-Date=1");
        assert_eq!(identity(&format!("f=%C4&{SIGV4}11")), "https://files.example/a/b.png?f=%C4");
    }

    #[test]
    fn what_names_a_version_or_shapes_the_answer_stays() {
        let kept = [
            "versionId=3",
            "generation=1700000000000000",
            "snapshot=2026-01-01T00%3A00%3A00.0000000Z",
            "response-content-type=image%2Fpng",
            "versionid=2026-01-01",
            "rscd=file",
            "width=64",
        ];
        for query in signed("11") {
            for kept in kept {
                for both in [format!("{query}&{kept}"), format!("{kept}&{query}")] {
                    assert_eq!(identity(&both), format!("https://files.example/a/b.png?{kept}"), "{query}");
                }
            }
        }
    }

    #[test]
    fn a_part_of_a_signature_stays() {
        for query in signed("11") {
            let pairs: Vec<&str> = query.split('&').collect();
            for left_out in pairs.iter().filter(|pair| {
                let required = [
                    "Signature",
                    "AWSAccessKeyId",
                    "Key-Pair-Id",
                    "GoogleAccessId",
                    "sig=",
                    "sv=",
                    "X-Amz-Date",
                    "X-Goog-Date",
                ];
                required.iter().any(|name| pair.starts_with(name))
            }) {
                let part: Vec<&str> = pairs.iter().copied().filter(|pair| pair != left_out).collect();
                assert_eq!(identity(&part.join("&")).matches('=').count(), part.len(), "{query} without {left_out}");
            }
        }
        assert_ne!(identity("Expires=1&Signature=a"), identity("Expires=1&Signature=b"));
        assert_ne!(identity("X-Amz-Signature=a"), identity("X-Amz-Signature=b"));
        assert_ne!(identity("sv=2&sig=a&sr=b"), identity("sv=2&sig=b&sr=b"), "it never ends: no signature that is known");
        assert_ne!(identity("awsaccesskeyid=a&signature=b&expires=1"), identity("awsaccesskeyid=a&signature=c&expires=1"));
    }
}
