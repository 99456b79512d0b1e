//! The seed a job or a manifest asks for, or the one it gets that asks for any.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::job::JobId;
use crate::job::task::Seed;
use crate::shown;

/// What stands in a body for any seed.
const ANY: i64 = -1;

/// A seed, or -1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeedChoice {
    Given(Seed),
    Any,
}

impl<'de> Deserialize<'de> for SeedChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        if value.as_f64() == Some(ANY as f64) {
            return Ok(Self::Any);
        }
        let seed = Seed::deserialize(&value).map(Self::Given);
        seed.map_err(|_| de::Error::custom(format!("must be {}, or -1 for any, got {}", Seed::ALLOWED, shown::json(&value))))
    }
}

impl Serialize for SeedChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Given(seed) => seed.serialize(serializer),
            Self::Any => ANY.serialize(serializer),
        }
    }
}

impl SeedChoice {
    /// The seed, and how it enters the fingerprint. Any seed is the same one each time a job is delivered: it comes from the job's id and everything
    /// else that decides its images (`canonical`). torch takes 32 bits of a seed, so it has no more.
    pub(super) fn acknowledge(self, job_id: &JobId, canonical: &mut Value) -> Seed {
        match self {
            Self::Given(seed) => {
                canonical["seed"] = json!(seed);
                seed
            }
            Self::Any => {
                canonical["seed"] = json!(ANY);
                let digest = Sha256::digest(format!("{}\n{canonical}", job_id.as_str()));
                Seed::from(u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]))
            }
        }
    }
}
