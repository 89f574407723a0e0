//! The numbers of a structure, found on the way on which JSON would be made of it, without making it: a scrape of a thousand devices has
//! tens of thousands of them.
//!
//! It is no format: what is no whole number, and no object of whole numbers, is left out without a word. Belongs to the scraper's thread.

use std::fmt;

use serde::ser::{self, Impossible, Serialize, SerializeMap, SerializeStruct, Serializer};

/// What a field of a structure is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Number<'a> {
    /// A number by itself.
    Alone(u64),
    /// One of those in an object, by its name there.
    Named(&'a str, u64),
}

/// Hands on each number of a structure with its field's name, of those fields that are `wanted`.
pub(super) fn each(
    of: &impl Serialize,
    wanted: fn(&str) -> bool,
    mut tell: impl FnMut(&'static str, Number<'_>),
) {
    // What is no structure has no fields.
    let _ = of.serialize(Finder { at: At::Structure, wanted, tell: &mut tell });
}

/// Where a serializer stands, and whom it tells.
struct Finder<'a> {
    at: At<'a>,
    wanted: fn(&str) -> bool,
    tell: &'a mut dyn FnMut(&'static str, Number<'_>),
}

enum At<'a> {
    /// The structure as a whole.
    Structure,
    /// One of its fields.
    Field(&'static str),
    /// The name of an entry of an object, to be found out.
    Name(&'a mut String),
    /// An entry of the object that a field is.
    Entry(&'static str, &'a str),
}

impl Finder<'_> {
    fn number(self, value: Option<u64>) -> Result<(), NotTold> {
        let value = value.ok_or(NotTold)?;
        match self.at {
            At::Field(field) => (self.tell)(field, Number::Alone(value)),
            At::Entry(field, name) => (self.tell)(field, Number::Named(name, value)),
            At::Structure | At::Name(_) => return Err(NotTold),
        }
        Ok(())
    }

    /// The same, for what is inside of it.
    fn within<'b>(&'b mut self, at: At<'b>) -> Finder<'b> {
        Finder { at, wanted: self.wanted, tell: &mut *self.tell }
    }
}

/// The numbers that are told, and the methods for what is not.
macro_rules! methods {
    (told $($told:ident($of:ty))* ; not $($method:ident($($kind:ty),*) -> $made:ty;)*) => {
        $(fn $told(self, value: $of) -> Result<(), NotTold> { self.number(u64::try_from(value).ok()) })*
        $(fn $method(self, $(_: $kind),*) -> Result<$made, NotTold> { Err(NotTold) })*
    };
}

impl<'a> Serializer for Finder<'a> {
    type Ok = ();
    type Error = NotTold;
    type SerializeSeq = Impossible<(), NotTold>;
    type SerializeTuple = Impossible<(), NotTold>;
    type SerializeTupleStruct = Impossible<(), NotTold>;
    type SerializeTupleVariant = Impossible<(), NotTold>;
    type SerializeMap = Entries<'a>;
    type SerializeStruct = Fields<'a>;
    type SerializeStructVariant = Impossible<(), NotTold>;

    methods! {
        told
            serialize_u8(u8) serialize_u16(u16) serialize_u32(u32) serialize_u64(u64)
            serialize_i8(i8) serialize_i16(i16) serialize_i32(i32) serialize_i64(i64);
        not
            serialize_bool(bool) -> ();
            serialize_f32(f32) -> ();
            serialize_f64(f64) -> ();
            serialize_char(char) -> ();
            serialize_bytes(&[u8]) -> ();
            serialize_none() -> ();
            serialize_unit() -> ();
            serialize_unit_struct(&'static str) -> ();
            serialize_unit_variant(&'static str, u32, &'static str) -> ();
            serialize_seq(Option<usize>) -> Self::SerializeSeq;
            serialize_tuple(usize) -> Self::SerializeTuple;
            serialize_tuple_struct(&'static str, usize) -> Self::SerializeTupleStruct;
            serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Self::SerializeTupleVariant;
            serialize_struct_variant(&'static str, u32, &'static str, usize) -> Self::SerializeStructVariant;
    }

    fn serialize_str(self, text: &str) -> Result<(), NotTold> {
        match self.at {
            At::Name(name) => name.push_str(text),
            _ => return Err(NotTold),
        }
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), NotTold> {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), NotTold> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<(), NotTold> {
        Err(NotTold)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Fields<'a>, NotTold> {
        match self.at {
            At::Structure => Ok(Fields(self)),
            _ => Err(NotTold),
        }
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Entries<'a>, NotTold> {
        match self.at {
            At::Field(field) => Ok(Entries { field, finder: self, name: String::new() }),
            _ => Err(NotTold),
        }
    }
}

/// The fields of the structure.
struct Fields<'a>(Finder<'a>);

impl SerializeStruct for Fields<'_> {
    type Ok = ();
    type Error = NotTold;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        field: &'static str,
        value: &T,
    ) -> Result<(), NotTold> {
        if (self.0.wanted)(field) {
            let _ = value.serialize(self.0.within(At::Field(field)));
        }
        Ok(())
    }

    fn end(self) -> Result<(), NotTold> {
        Ok(())
    }
}

/// The entries of an object that is a field.
struct Entries<'a> {
    field: &'static str,
    finder: Finder<'a>,
    /// Of the entry that is looked at.
    name: String,
}

impl SerializeMap for Entries<'_> {
    type Ok = ();
    type Error = NotTold;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), NotTold> {
        self.name.clear();
        key.serialize(self.finder.within(At::Name(&mut self.name)))
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotTold> {
        let Entries { field, finder, name } = self;
        let _ = value.serialize(finder.within(At::Entry(field, name)));
        Ok(())
    }

    fn end(self) -> Result<(), NotTold> {
        Ok(())
    }
}

/// A value that is not told.
#[derive(Debug)]
struct NotTold;

impl fmt::Display for NotTold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no number")
    }
}

impl std::error::Error for NotTold {}

impl ser::Error for NotTold {
    fn custom<T: fmt::Display>(_: T) -> NotTold {
        NotTold
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(serde::Serialize)]
    struct Shown {
        bytes: u64,
        node: Option<u32>,
        absent: Option<u32>,
        below: i64,
        name: &'static str,
        is_on: bool,
        share: f64,
        list: Vec<u64>,
        inner: Inner,
        drops: BTreeMap<&'static str, u64>,
        mixed: serde_json::Value,
        unwanted: u64,
    }

    #[derive(serde::Serialize)]
    struct Inner {
        deep: u64,
    }

    #[test]
    fn whole_numbers_are_found_and_nothing_else() {
        let shown = Shown {
            bytes: u64::MAX,
            node: Some(1),
            absent: None,
            below: -1,
            name: "7",
            is_on: true,
            share: 0.5,
            list: vec![1, 2],
            inner: Inner { deep: 3 },
            drops: BTreeMap::from([("runt", 0), ("giant", 4)]),
            mixed: serde_json::json!({ "one": 1, "text": "2", "deeper": { "three": 3 }, "four": 4 }),
            unwanted: 5,
        };
        let mut found = Vec::new();
        each(
            &shown,
            |field| field != "unwanted",
            |field, number| {
                found.push(match number {
                    Number::Alone(value) => format!("{field} {value}"),
                    Number::Named(name, value) => format!("{field}.{name} {value}"),
                });
            },
        );
        let all = [
            "bytes 18446744073709551615",
            "node 1",
            "drops.giant 4",
            "drops.runt 0",
            "mixed.one 1",
            "mixed.four 4",
        ];
        assert_eq!(found, all);
        // What is no structure has none.
        each(&7, |_| true, |field, number| panic!("{field} {number:?}"));
    }
}
