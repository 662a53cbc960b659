//! A walk over the footer of a Parquet file before its reader sees it: a list there says how many elements it has, and the reader
//! makes room for them before it looks for them. Thrift's compact protocol (thrift-compact-protocol.md of Apache Thrift), Parquet's
//! file metadata (apache/parquet-format, README).

use crate::{Error, Result};

/// Structs inside each other; Parquet's own have six.
const DEPTH: usize = 32;

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
    fn value(&mut self, kind: u8, depth: usize) -> Option<()> {
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
                for _ in 0..n {
                    match head & 15 {
                        1 | 2 => self.skip(1)?,
                        kind => self.value(kind, depth + 1)?,
                    }
                }
                Some(())
            }
            11 => {
                let said = self.number()?;
                let n = self.count(said)?;
                let kinds = if n > 0 { self.byte()? } else { 0 };
                for _ in 0..n {
                    self.value(kinds >> 4, depth + 1)?;
                    self.value(kinds & 15, depth + 1)?;
                }
                Some(())
            }
            12 => loop {
                let head = self.byte()?;
                if head == 0 {
                    return Some(());
                }
                if head >> 4 == 0 {
                    self.number()?;
                }
                self.value(head & 15, depth + 1)?;
            },
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
        walk.value(12, 0)
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
        // Field 1 an i32, field 2 a list of two binaries, the end.
        assert!(check_parquet(&file(&[0x15, 0x02, 0x19, 0x28, 1, b'a', 0, 0])).is_ok());
        // A list of 2^35 structs, as a fuzzer made one: 26 GB were reserved for it.
        assert!(check_parquet(&file(&[0x19, 0xfc, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01, 0])).is_err());
        // Structs in structs without end, a binary beyond the end, a footer longer than the file, no footer.
        assert!(check_parquet(&file(&[0x1c; 100])).is_err());
        assert!(check_parquet(&file(&[0x18, 0x7f, 0])).is_err());
        assert!(check_parquet(b"\xff\xff\x00\x00PAR1").is_err() && check_parquet(b"PAR").is_err());
    }
}
