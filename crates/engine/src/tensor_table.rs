//! The table of tensors at the beginning of a safetensors file, which is JSON.

use std::fmt;

use safetensors::SafeTensorError;
use safetensors::tensor::Metadata;
use serde::Deserializer as _;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};

/// The largest models have a few thousand, an adapter up to nine for each of their weights.
pub(super) const MAX_TENSORS: usize = 32_768;

/// Whether a header is a JSON object of at most so many entries, which are read one after the other and not kept. What is no JSON counts as
/// short: [`tensor_table`] says what is wrong with it.
pub(super) fn has_entries_up_to(header: &[u8], max: usize) -> bool {
    let mut counted = Counted { max, exceeded: false };
    let read = serde_json::Deserializer::from_slice(header).deserialize_map(&mut counted);
    read.is_ok() || !counted.exceeded
}

struct Counted {
    max: usize,
    exceeded: bool,
}

impl<'de> Visitor<'de> for &mut Counted {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut count = 0;
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            count += 1;
            if count > self.max {
                self.exceeded = true;
                return Err(A::Error::custom("too many entries"));
            }
        }
        Ok(())
    }
}

/// The table of tensors at the beginning of a safetensors file.
pub(super) fn tensor_table(header: &[u8]) -> Result<Metadata, SafeTensorError> {
    serde_json::from_slice(header).map_err(SafeTensorError::InvalidHeaderDeserialization)
}

/// The same as text, to be written.
pub(super) fn written_table(table: &Metadata) -> Result<Vec<u8>, SafeTensorError> {
    serde_json::to_vec(table).map_err(SafeTensorError::JsonError)
}
