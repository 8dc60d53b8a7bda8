//! Where fields are in this kernel's structs, from the BTF that it publishes. Pure; reads untrusted bytes without panic.
//!
//! The kernel programs need a handful of fields that the stable context does not show. The loader looks them up
//! here and hands them over as constants.

/// Magic of little-endian BTF.
const MAGIC: u16 = 0xeb9f;
/// Deepest nesting of anonymous structs followed.
const MAX_DEPTH: u32 = 8;
/// Most members looked at for one offset; the largest struct of a kernel has some 300. Damaged BTF may have a struct
/// that holds itself many times over.
const MAX_MEMBERS: u32 = 10_000;

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FUNCTION: u32 = 12;
const KIND_PROTOTYPE: u32 = 13;

/// Parsed just enough to find members.
pub struct Btf<'a> {
    bytes: &'a [u8],
    strings: &'a [u8],
    types: Vec<usize>,
}

impl<'a> Btf<'a> {
    /// Indexes BTF as found in `/sys/kernel/btf/vmlinux`; `None` when it is malformed.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        if u16::from_le_bytes(bytes.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let header = word(bytes, 4)? as usize;
        let section = |offset: usize, length: usize| {
            let start = header.checked_add(word(bytes, offset)? as usize)?;
            bytes.get(start..start.checked_add(word(bytes, length)? as usize)?)
        };
        let (bytes, strings) = (section(8, 12)?, section(16, 20)?);
        let mut types = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            types.push(at);
            at += 12 + trailer(word(bytes, at + 4)?)?;
        }
        Some(Self {
            bytes,
            strings,
            types,
        })
    }

    /// Byte offset of `structure.member`, also where the member is in an anonymous struct within; `None` when there is
    /// no such member, or it is a bit field.
    pub fn offset(&self, structure: &str, member: &str) -> Option<u32> {
        let at = *self.types.iter().find(|at| {
            self.info(**at)
                .is_some_and(|info| kind(info) == KIND_STRUCT && length(info) > 0)
                && self.name(**at) == Some(structure.as_bytes())
        })?;
        let mut left = MAX_MEMBERS;
        self.member(at, member, 0, &mut left)
    }

    /// The value of an enumerator, in whichever enumeration it is.
    pub fn enumerator(&self, name: &str) -> Option<u32> {
        let enumerations = self
            .types
            .iter()
            .filter(|at| self.info(**at).is_some_and(|info| kind(info) == KIND_ENUM));
        for at in enumerations {
            for index in 0..length(self.info(*at)?) as usize {
                let entry = at + 12 + index * 8;
                if self.name(entry) == Some(name.as_bytes()) {
                    return word(self.bytes, entry + 4);
                }
            }
        }
        None
    }

    /// How many parameters a function takes.
    pub fn parameters(&self, function: &str) -> Option<u32> {
        let at = self.types.iter().find(|at| {
            self.info(**at)
                .is_some_and(|info| kind(info) == KIND_FUNCTION)
                && self.name(**at) == Some(function.as_bytes())
        })?;
        let prototype = (word(self.bytes, at + 8)? as usize).checked_sub(1)?;
        let info = self.info(*self.types.get(prototype)?)?;
        (kind(info) == KIND_PROTOTYPE).then_some(length(info))
    }

    fn member(&self, at: usize, name: &str, depth: u32, left: &mut u32) -> Option<u32> {
        let info = self.info(at)?;
        if !matches!(kind(info), KIND_STRUCT | KIND_UNION) || depth > MAX_DEPTH {
            return None;
        }
        for index in 0..length(info) as usize {
            *left = left.checked_sub(1)?;
            let member = at + 12 + index * 12;
            let place = word(self.bytes, member + 8)?;
            let (bits, width) = if info >> 31 == 1 {
                (place & 0xff_ffff, place >> 24)
            } else {
                (place, 0)
            };
            match self.name(member)? {
                found if found == name.as_bytes() => {
                    return (bits % 8 == 0 && width == 0).then_some(bits / 8);
                }
                [] => {
                    let inner = (word(self.bytes, member + 4)? as usize).checked_sub(1)?;
                    if let Some(offset) = self
                        .types
                        .get(inner)
                        .and_then(|at| self.member(*at, name, depth + 1, left))
                    {
                        return (bits / 8).checked_add(offset);
                    }
                }
                _ => {}
            }
        }
        None
    }

    fn info(&self, at: usize) -> Option<u32> {
        word(self.bytes, at + 4)
    }

    fn name(&self, at: usize) -> Option<&[u8]> {
        let rest = self.strings.get(word(self.bytes, at)? as usize..)?;
        rest.split(|byte| *byte == 0).next()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

fn kind(info: u32) -> u32 {
    info >> 24 & 0x1f
}

fn length(info: u32) -> u32 {
    info & 0xffff
}

/// Bytes that follow a type's three words, by its kind.
fn trailer(info: u32) -> Option<usize> {
    let each = length(info) as usize;
    Some(match kind(info) {
        1 | 14 | 17 => 4,                     // integer, variable, declaration tag
        2 | 7..=KIND_FUNCTION | 16 | 18 => 0, // pointer, forward, typedef, qualifiers, function, float, type tag
        3 => 12,                              // array
        KIND_STRUCT | KIND_UNION => each * 12,
        KIND_ENUM | KIND_PROTOTYPE => each * 8,
        15 | 19 => each * 12, // data section, 64-bit enumeration
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `struct outer { int a; struct { int b; int c; }; }` by hand.
    fn sample() -> Vec<u8> {
        let strings = b"\0outer\0a\0b\0c\0int\0";
        let words: Vec<u32> = [
            vec![13, 1 << 24, 4, 32],
            vec![0, KIND_STRUCT << 24 | 2, 8, 9, 1, 0, 11, 1, 32],
            vec![1, KIND_STRUCT << 24 | 2, 12, 7, 1, 0, 0, 2, 32],
        ]
        .concat();
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in [
            24,
            0,
            types.len() as u32,
            types.len() as u32,
            strings.len() as u32,
        ] {
            bytes.extend(word.to_le_bytes());
        }
        [bytes, types, strings.to_vec()].concat()
    }

    #[test]
    fn members_are_found_also_in_anonymous_structs() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.offset("outer", "a"), Some(0));
        assert_eq!(btf.offset("outer", "c"), Some(8));
        assert_eq!(btf.offset("outer", "d"), None);
        assert_eq!(btf.offset("inner", "a"), None);
    }

    /// `enum { a = 7 }` and `int b(int, int)`.
    #[test]
    fn enumerators_and_functions_are_found() {
        let strings = b"\0a\0b\0";
        let words: Vec<u32> = [
            vec![0, KIND_ENUM << 24 | 1, 4, 1, 7],
            vec![0, KIND_PROTOTYPE << 24 | 2, 0, 0, 1, 0, 1],
            vec![3, KIND_FUNCTION << 24, 2],
        ]
        .concat();
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let length = types.len() as u32;
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, length, length, strings.len() as u32] {
            bytes.extend(word.to_le_bytes());
        }
        let bytes = [bytes, types, strings.to_vec()].concat();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!((btf.enumerator("a"), btf.enumerator("b")), (Some(7), None));
        assert_eq!((btf.parameters("b"), btf.parameters("a")), (Some(2), None));
    }

    #[test]
    fn a_struct_that_holds_itself_is_given_up() {
        let mut words = vec![1, KIND_STRUCT << 24 | 300, 0];
        words.extend([0, 1, 0].repeat(300));
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let strings = b"\0outer\0";
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        let length = types.len() as u32;
        for word in [24, 0, length, length, strings.len() as u32] {
            bytes.extend(word.to_le_bytes());
        }
        let bytes = [bytes, types, strings.to_vec()].concat();
        assert_eq!(Btf::parse(&bytes).unwrap().offset("outer", "a"), None);
    }

    proptest! {
        #[test]
        fn damaged_bytes_do_no_harm(at in 0_usize..200, value in any::<u8>(), cut in 0_usize..200) {
            let mut bytes = sample();
            let length = bytes.len();
            bytes[at % length] = value;
            bytes.truncate(length - cut % length);
            if let Some(btf) = Btf::parse(&bytes) {
                let _ = btf.offset("outer", "c");
                let _ = (btf.enumerator("c"), btf.parameters("c"));
            }
        }
    }
}
