//! How arrays and descriptions become a [`Message`] and back. The header is a JSON object that refers to the message's
//! arrays by index.

use crate::abi::{self, Message};
use crate::model::Named;
use crate::wire::NamedMessage;
use crate::{Array, Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

/// Collects the arrays of a message.
#[derive(Default)]
pub(crate) struct Packer(Vec<abi::WireTensor>);

impl Packer {
    pub(crate) fn add(&mut self, array: &Array) -> usize {
        self.0.push(array.to_wire());
        self.0.len() - 1
    }

    pub(crate) fn add_map(&mut self, map: &BTreeMap<String, Array>) -> BTreeMap<String, usize> {
        map.iter().map(|(name, array)| (name.clone(), self.add(array))).collect()
    }

    pub(crate) fn add_named(&mut self, named: &Named) -> Vec<(String, usize)> {
        named.iter().map(|(name, array)| (name.clone(), self.add(array))).collect()
    }

    pub(crate) fn finish<T: Serialize>(self, header: &T) -> Result<Message> {
        Ok(Message { json: abi::print(header)?, tensors: self.0.into() })
    }
}

/// The arrays of a message that was received, all checked.
pub(crate) struct Unpacker(Vec<Array>);

impl Unpacker {
    pub(crate) fn open<T: DeserializeOwned>(message: Message) -> Result<(T, Self)> {
        let header = abi::parse(&message.json)?;
        // SAFETY: the other side of the ABI made the handles; that their memory is what they say is its promise, which
        // every plugin and host gives by being loaded. The rest is checked.
        let array = |wire| unsafe { Array::from_wire(wire) };
        let arrays = message.tensors.into_iter().map(array).collect::<Result<_>>()?;
        Ok((header, Unpacker(arrays)))
    }

    pub(crate) fn get(&self, index: usize) -> Result<Array> {
        let count = self.0.len();
        let found = self.0.get(index).cloned();
        found.ok_or_else(|| Error::invalid(format!("malformed message: array {index} of {count}")))
    }

    pub(crate) fn into_arrays(self) -> Vec<Array> {
        self.0
    }

    pub(crate) fn optional(&self, index: Option<usize>) -> Result<Option<Array>> {
        index.map(|i| self.get(i)).transpose()
    }

    pub(crate) fn map(&self, indices: BTreeMap<String, usize>) -> Result<BTreeMap<String, Array>> {
        indices.into_iter().map(|(name, i)| Ok((name, self.get(i)?))).collect()
    }

    pub(crate) fn named(&self, indices: Vec<(String, usize)>) -> Result<Named> {
        indices.into_iter().map(|(name, i)| Ok((name, self.get(i)?))).collect()
    }
}

pub(crate) fn pack_named(named: &Named) -> Result<Message> {
    let mut packer = Packer::default();
    let arrays = packer.add_named(named);
    packer.finish(&NamedMessage { arrays })
}

pub(crate) fn unpack_named(message: Message) -> Result<Named> {
    let (wire, arrays): (NamedMessage, _) = Unpacker::open(message)?;
    arrays.named(wire.arrays)
}

/// The array of this name.
pub(crate) fn take(named: Named, name: &str) -> Result<Array> {
    let found = named.into_iter().find(|(n, _)| n == name);
    found.map(|(_, a)| a).ok_or_else(|| Error::invalid(format!("malformed message: no array {name}")))
}

/// Refuses a message that requires what this side does not know: leaving it out would change the result.
pub(crate) fn check_requires(what: &str, requires: &[String], known: &[&str]) -> Result<()> {
    match requires.iter().find(|r| !known.contains(&r.as_str())) {
        None => Ok(()),
        Some(other) => Err(Error::unsupported(format!(
            "{what} requires `{other}`, which this side's SDK ({}) does not know; build it against a newer one",
            env!("CARGO_PKG_VERSION")
        ))),
    }
}
