//! What is counted by a name. It belongs to whoever read it: nothing in it counts on.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Named;

/// Counts by name, in the order in which the code has the names; an object in JSON. A name of the code's own is not copied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts(Vec<(Cow<'static, str>, u64)>);

impl Counts {
    /// What stands at a name; 0 without it.
    pub fn of(&self, name: &str) -> u64 {
        self.iter().find(|(known, _)| *known == name).map_or(0, |(_, count)| count)
    }

    /// Whether there is such a name, whatever it stands at.
    pub fn has(&self, name: &str) -> bool {
        self.iter().any(|(known, _)| known == name)
    }

    /// All of them together.
    pub fn total(&self) -> u64 {
        self.iter().fold(0, |total, (_, count)| total.saturating_add(count))
    }

    /// Each name with its count.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, count)| (&**name, *count))
    }

    /// Those that are not zero.
    pub fn occurred(mut self) -> Counts {
        self.0.retain(|(_, count)| *count > 0);
        self
    }

    /// True without a name.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<N: Into<Cow<'static, str>>> FromIterator<(N, u64)> for Counts {
    fn from_iter<I: IntoIterator<Item = (N, u64)>>(iter: I) -> Counts {
        Counts(iter.into_iter().map(|(name, count)| (name.into(), count)).collect())
    }
}

impl Serialize for Counts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Counts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Counts, D::Error> {
        let named = Named::<u64>::deserialize(deserializer)?;
        Ok(named.0.into_iter().collect())
    }
}

impl JsonSchema for Counts {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Counts".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Named::<u64>::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_an_object_in_the_order_in_which_they_were_made() {
        let counts = Counts::from_iter([("runt", 0), ("no_rx_buffer", 3), ("giant", 4)]);
        let json = r#"{"runt":0,"no_rx_buffer":3,"giant":4}"#;
        assert_eq!(serde_json::to_string(&counts).unwrap(), json);
        assert_eq!(serde_json::from_str::<Counts>(json).unwrap(), counts);
        assert_eq!((counts.of("giant"), counts.of("runt"), counts.of("else"), counts.total()), (4, 0, 0, 7));
        assert!(counts.has("runt") && !counts.has("else"));
        assert!(!counts.clone().occurred().has("runt"));
        assert!(serde_json::from_str::<Counts>(r#"{"runt":-1}"#).is_err());
    }
}
