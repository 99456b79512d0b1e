//! Numbers of a fixed range, as types that cannot hold another.

/// A whole number in a fixed range, read from JSON with an error that says the range.
macro_rules! whole_number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $range:expr, $what:literal $(, multiple of $multiple:literal)?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
        #[serde(transparent)]
        pub struct $name($inner);

        impl $name {
            pub const RANGE: ::std::ops::RangeInclusive<u64> = $range;
            $(pub const MULTIPLE_OF: u64 = $multiple;)?

            /// # Errors
            /// Says what is allowed when `number` is out of range.
            pub fn new(number: u64) -> Result<Self, String> {
                let fits = Self::RANGE.contains(&number) $(&& number.is_multiple_of($multiple))?;
                match <$inner>::try_from(number) {
                    Ok(number) if fits => Ok(Self(number)),
                    _ => Err(format!("must be {}, got {number}", $what)),
                }
            }

            #[must_use]
            pub fn get(self) -> $inner {
                self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value = ::serde_json::Value::deserialize(deserializer)?;
                let number = $crate::job::task::whole_number(&value)
                    .ok_or_else(|| de::Error::custom(format!("must be {}, got {}", $what, $crate::shown::json(&value))))?;
                Self::new(number).map_err(de::Error::custom)
            }
        }
    };
}

/// A finite number in a fixed range, read from JSON with an error that says the range. `zero is 0.0`: so is -0, which is the same request.
macro_rules! real_number {
    ($(#[$doc:meta])* $name:ident, $range:expr, $what:literal $(, zero is $zero:literal)?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Serialize)]
        #[serde(transparent)]
        pub struct $name(f64);

        impl $name {
            /// # Errors
            /// Says what is allowed when `number` is out of range.
            pub fn new(number: f64) -> Result<Self, String> {
                if $range.contains(&number) {
                    Ok(Self(number $(+ $zero)?))
                } else {
                    Err(format!("must be {}, got {}", $what, $crate::shown::clipped(number.to_string(), $crate::shown::MAX_CHARS)))
                }
            }

            #[must_use]
            pub fn get(self) -> f64 {
                self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value = ::serde_json::Value::deserialize(deserializer)?;
                let number = value
                    .as_f64()
                    .ok_or_else(|| de::Error::custom(format!("must be {}, got {}", $what, $crate::shown::json(&value))))?;
                Self::new(number).map_err(de::Error::custom)
            }
        }
    };
}
