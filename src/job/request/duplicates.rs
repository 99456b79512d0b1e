//! A name that stands twice in one object of a body: JSON readers disagree on which of the two counts, so neither is taken.

use std::collections::HashSet;
use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};

use crate::job::outcome::JobError;
use crate::shown;

/// # Errors
/// [`JobError::Invalid`] of the first field that is there twice. What is no JSON is not said here.
pub fn check(json: &[u8]) -> Result<(), JobError> {
    let mut twice = None;
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    // Whatever else is wrong is found by those who read the values.
    let _ = Values { path: "", twice: &mut twice }.deserialize(&mut deserializer);
    match twice {
        Some(path) => {
            let problem = "comes twice in one object: send it once".to_owned();
            Err(JobError::Invalid { field: shown::name(&path), problem })
        }
        None => Ok(()),
    }
}

/// Goes through a value and all that is in it.
struct Values<'a> {
    path: &'a str,
    /// The path of a field that was there before.
    twice: &'a mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for Values<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Values<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            let path = if self.path.is_empty() { name.clone() } else { format!("{}.{name}", self.path) };
            if !names.insert(name) {
                *self.twice = Some(path);
                return Err(A::Error::custom("a name is there twice"));
            }
            map.next_value_seed(Values { path: &path, twice: self.twice })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let mut index = 0;
        loop {
            let path = format!("{}[{index}]", self.path);
            if elements.next_element_seed(Values { path: &path, twice: self.twice })?.is_none() {
                return Ok(());
            }
            index += 1;
        }
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_that_is_there_twice_is_named_with_its_place() {
        let cases = [
            (r#"{"seed": 1, "prompt": "x", "seed": 2}"#, "seed"),
            (r#"{"lora": [{"url": "a"}, {"scale": 1, "scale": 1}]}"#, "lora[1].scale"),
            (r#"{"output": {"format": "png", "format": "png"}, "seed": 1, "seed": 1}"#, "output.format"),
            (r#"{"seed": 1, "seed": 1"#, "seed"),
        ];
        for (json, field) in cases {
            let error = check(json.as_bytes()).expect_err(json).to_string();
            assert!(error.contains(&format!("{field}: comes twice")), "{json}: {error}");
        }
    }

    #[test]
    fn one_name_in_two_objects_is_no_matter_and_no_json_is_for_others_to_refuse() {
        for json in
            [r#"{"lora": [{"url": "a"}, {"url": "a"}], "mask": {"url": null, "x": [1, -1, 1.5, true]}}"#, "[", "{", "1e999", ""]
        {
            assert!(check(json.as_bytes()).is_ok(), "{json}");
        }
    }
}
