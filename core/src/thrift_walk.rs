//! A walk over the footer of a Parquet file before its reader sees it: a list there says how many elements it has, and the reader
//! makes room for them before it looks for them. Thrift's compact protocol (thrift-compact-protocol.md of Apache Thrift), Parquet's
//! file metadata (apache/parquet-format, README).

use crate::{Error, Result};

/// Structs inside each other; Parquet's own have six.
const DEPTH: usize = 32;

/// What a field of one of Parquet's structs is: its number, its type, and of a list what its elements are. The reader goes by the
/// number alone, so that a text in the place of a list would be read as one.
struct Field(u64, u8, Option<(u8, &'static [Field])>);

const FILE: &[Field] = &[
    Field(1, 5, None),
    Field(2, 9, Some((12, SCHEMA))),
    Field(3, 6, None),
    Field(4, 9, Some((12, ROW_GROUP))),
    Field(5, 9, Some((12, PAIR))),
    Field(6, 8, None),
    Field(7, 9, Some((12, &[]))),
    Field(8, 12, None),
    Field(9, 8, None),
];
const SCHEMA: &[Field] = &[
    Field(1, 5, None),
    Field(2, 5, None),
    Field(3, 5, None),
    Field(4, 8, None),
    Field(5, 5, None),
    Field(6, 5, None),
    Field(7, 5, None),
    Field(8, 5, None),
    Field(9, 5, None),
    Field(10, 12, None),
];
const ROW_GROUP: &[Field] = &[
    Field(1, 9, Some((12, COLUMN))),
    Field(2, 6, None),
    Field(3, 6, None),
    Field(4, 9, Some((12, &[]))),
    Field(5, 6, None),
    Field(6, 6, None),
    Field(7, 4, None),
];
const COLUMN: &[Field] = &[
    Field(1, 8, None),
    Field(2, 6, None),
    Field(3, 12, Some((12, META))),
    Field(4, 6, None),
    Field(5, 5, None),
    Field(6, 6, None),
    Field(7, 5, None),
    Field(8, 12, None),
    Field(9, 8, None),
];
const META: &[Field] = &[
    Field(1, 5, None),
    Field(2, 9, Some((5, &[]))),
    Field(3, 9, Some((8, &[]))),
    Field(4, 5, None),
    Field(5, 6, None),
    Field(6, 6, None),
    Field(7, 6, None),
    Field(8, 9, Some((12, PAIR))),
    Field(9, 6, None),
    Field(10, 6, None),
    Field(11, 6, None),
    Field(12, 12, None),
    Field(13, 9, Some((12, &[]))),
    Field(14, 6, None),
    Field(15, 5, None),
    Field(16, 12, Some((12, SIZES))),
];
const SIZES: &[Field] = &[Field(1, 6, None), Field(2, 9, Some((6, &[]))), Field(3, 9, Some((6, &[])))];
const PAIR: &[Field] = &[Field(1, 8, None), Field(2, 8, None)];

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Walk<'_> {
    fn byte(&mut self) -> Option<u8> {
        self.at += 1;
        self.bytes.get(self.at - 1).copied()
    }

    fn number(&mut self) -> Option<u64> {
        let (mut value, mut shift) = (0u64, 0);
        loop {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
            shift += 7;
            if shift > 63 {
                return None;
            }
        }
    }

    fn skip(&mut self, n: u64) -> Option<()> {
        let left = self.bytes.len().checked_sub(self.at)? as u64;
        (n <= left).then(|| self.at += n as usize)
    }

    /// A number of elements, each of which takes a byte at least.
    fn count(&mut self, count: u64) -> Option<u64> {
        let left = self.bytes.len().checked_sub(self.at)? as u64;
        Some(count).filter(|n| *n <= left)
    }

    /// Passes over a value of this type; none where it goes beyond the end.
    /// `inside` says what elements of a list must be, and what fields the structs among them have.
    fn value(&mut self, kind: u8, depth: usize, inside: Option<(u8, &[Field])>) -> Option<()> {
        if depth > DEPTH {
            return None;
        }
        match kind {
            // A boolean field has its value in its type.
            1 | 2 => Some(()),
            3 => self.skip(1),
            4..=6 => self.number().map(drop),
            7 => self.skip(8),
            8 => {
                let n = self.number()?;
                self.skip(n)
            }
            9 | 10 => {
                let head = self.byte()?;
                let said = if head >> 4 == 15 { self.number()? } else { u64::from(head >> 4) };
                let n = self.count(said)?;
                if n > 0 && inside.is_some_and(|(element, _)| element != head & 15) {
                    return None;
                }
                for _ in 0..n {
                    match head & 15 {
                        1 | 2 => self.skip(1)?,
                        kind => self.value(kind, depth + 1, inside)?,
                    }
                }
                Some(())
            }
            11 => {
                let said = self.number()?;
                let n = self.count(said)?;
                let kinds = if n > 0 { self.byte()? } else { 0 };
                for _ in 0..n {
                    self.value(kinds >> 4, depth + 1, None)?;
                    self.value(kinds & 15, depth + 1, None)?;
                }
                Some(())
            }
            12 => {
                let mut number = 0;
                loop {
                    let head = self.byte()?;
                    if head & 15 == 0 {
                        return Some(());
                    }
                    number = match head >> 4 {
                        // Zigzag: a number of its own; a negative one is none of Parquet's.
                        0 => Some(self.number()?).filter(|n| n % 2 == 0)? / 2,
                        delta => number + u64::from(delta),
                    };
                    let known = inside.and_then(|(_, fields)| fields.iter().find(|f| f.0 == number));
                    if known.is_some_and(|f| f.1 != head & 15) {
                        return None;
                    }
                    self.value(head & 15, depth + 1, known.and_then(|f| f.2))?;
                }
            }
            _ => None,
        }
    }
}

/// Checks the footer of a Parquet file.
///
/// # Errors
/// A file without a footer, or one that claims more than it holds.
pub fn check_parquet(bytes: &[u8]) -> Result<()> {
    let footer = || {
        let end = bytes.len().checked_sub(8)?;
        let length = u32::from_le_bytes(bytes[end..end + 4].try_into().ok()?) as usize;
        (&bytes[end + 4..] == b"PAR1").then_some(())?;
        let mut walk = Walk { bytes: bytes.get(end.checked_sub(length)?..end)?, at: 0 };
        walk.value(12, 0, Some((12, FILE)))
    };
    footer().ok_or_else(|| {
        Error::new("the Parquet file is broken: its footer is missing or claims more than the file holds")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(footer: &[u8]) -> Vec<u8> {
        [b"PAR1", footer, &(footer.len() as u32).to_le_bytes(), b"PAR1"].concat()
    }

    #[test]
    fn what_claims_more_than_there_is_is_refused() {
        // The version, a schema of one element, rows, no groups.
        let good = [0x15, 0x02, 0x19, 0x1c, 0x48, 1, b'a', 0, 0x16, 0, 0x19, 0x0c, 0];
        assert!(check_parquet(&file(&good)).is_ok());
        // A text where the row groups are, which the reader takes for a list of them.
        assert!(check_parquet(&file(&[0x15, 0x02, 0x38, 2, 0xfc, 0x7f, 0])).is_err());
        // A list of 2^35 structs, as a fuzzer made one: 26 GB were reserved for it.
        assert!(check_parquet(&file(&[0x19, 0xfc, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01, 0])).is_err());
        // Structs in structs without end, a binary beyond the end, a footer longer than the file, no footer.
        assert!(check_parquet(&file(&[0x1c; 100])).is_err());
        assert!(check_parquet(&file(&[0x18, 0x7f, 0])).is_err());
        assert!(check_parquet(b"\xff\xff\x00\x00PAR1").is_err() && check_parquet(b"PAR").is_err());
    }
}
