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
    let _ = Values { place: &Place::Body, twice: &mut twice }.deserialize(&mut deserializer);
    match twice {
        Some(path) => {
            let problem = "comes twice in one object: send it once".to_owned();
            Err(JobError::Invalid { field: shown::name(&path), problem })
        }
        None => Ok(()),
    }
}

/// Where a value stands. It becomes text for the one that is named alone: each value's would take as long as all names above it are.
enum Place<'a> {
    Body,
    Field(&'a Place<'a>, &'a str),
    Element(&'a Place<'a>, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body => Ok(()),
            Self::Field(Self::Body, name) => formatter.write_str(name),
            Self::Field(above, name) => write!(formatter, "{above}.{name}"),
            Self::Element(above, index) => write!(formatter, "{above}[{index}]"),
        }
    }
}

/// Goes through a value and all that is in it.
struct Values<'a> {
    place: &'a Place<'a>,
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
            let place = Place::Field(self.place, &name);
            if names.contains(&name) {
                *self.twice = Some(place.to_string());
                return Err(A::Error::custom("a name is there twice"));
            }
            map.next_value_seed(Values { place: &place, twice: self.twice })?;
            names.insert(name);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let mut index = 0;
        while elements.next_element_seed(Values { place: &Place::Element(self.place, index), twice: self.twice })?.is_some() {
            index += 1;
        }
        Ok(())
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

    /// The texts of these 200,000 places, below names of 400,000 bytes, would be 80 GB.
    #[test]
    fn a_place_costs_nothing_where_nothing_is_there_twice() {
        let names: Vec<String> = (0..100).map(|number| format!("{{\"{}{number}\":", "k".repeat(4000))).collect();
        let mut json = names.concat() + "[" + &"0,".repeat(200_000);
        json.push_str(r#"{"scale":1,"scale":1}]"#);
        json.push_str(&"}".repeat(100));
        let error = check(json.as_bytes()).expect_err("twice").to_string();
        assert!(error.contains("comes twice") && error.len() < 1000, "{error}");
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
