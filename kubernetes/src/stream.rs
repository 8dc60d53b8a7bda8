//! Objects out of streams, one at a time. Pure.
//!
//! A list is one JSON object with everything in its `items`; a page of it may be ten megabytes, of which we need little.
//! [`Items`] cuts it while it arrives: it never holds more than one object and the list's head. [`Lines`] does the same
//! for a watch, which sends an event a line.

/// Largest object or event that is kept. etcd takes 1.5 MB; what is larger is skipped and counted.
pub const MAX_OBJECT_BYTES: usize = 2 << 20;
/// Most bytes of a list beside its items.
pub const MAX_HEAD_BYTES: usize = 64 << 10;
/// Longest key that is looked at.
const MAX_KEY_BYTES: usize = 16;

/// Cuts a list into its items.
#[derive(Debug, Default)]
pub struct Items {
    /// The list without its items.
    head: Vec<u8>,
    item: Vec<u8>,
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// The last string at the depth of the list's own keys.
    key: Vec<u8>,
    /// Between the brackets of `items`.
    in_items: bool,
    /// Between the braces of an item.
    in_item: bool,
    oversized: bool,
    finished: bool,
    /// Items left out because they were too large.
    pub skipped: u64,
}

impl Items {
    /// Takes bytes as they come, and gives each item that is complete.
    pub fn push(&mut self, bytes: &[u8], mut item: impl FnMut(&[u8])) {
        for byte in bytes {
            if self.step(*byte) {
                match std::mem::take(&mut self.oversized) {
                    true => self.skipped += 1,
                    false => item(&self.item),
                }
                self.item.clear();
                self.item.shrink_to(MAX_OBJECT_BYTES / 16);
            }
        }
    }

    /// The list without its items, once it is complete.
    pub fn head(&self) -> Option<&[u8]> {
        (self.finished && self.head.len() < MAX_HEAD_BYTES).then_some(&self.head)
    }

    /// Takes one byte; says whether it completes an item.
    fn step(&mut self, byte: u8) -> bool {
        if self.in_item {
            if self.item.len() < MAX_OBJECT_BYTES {
                self.item.push(byte);
            } else {
                self.oversized = true;
            }
        }
        if self.in_string {
            self.string(byte);
            return false;
        }
        match byte {
            b'"' => {
                self.in_string = true;
                if self.depth == 1 {
                    self.key.clear();
                }
            }
            b'{' | b'[' => {
                self.depth = self.depth.saturating_add(1);
                if byte == b'[' && self.depth == 2 && self.key == b"items" {
                    self.keep(byte);
                    self.in_items = true;
                } else if self.in_items && self.depth == 3 {
                    self.in_item = true;
                    self.item.push(byte);
                }
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.in_item && self.depth == 2 {
                    self.in_item = false;
                    return true;
                }
                if self.in_items && self.depth == 1 {
                    self.in_items = false;
                }
                self.finished |= self.depth == 0;
            }
            _ => {}
        }
        if !self.in_items {
            self.keep(byte);
        }
        false
    }

    fn string(&mut self, byte: u8) {
        if !self.in_items {
            self.keep(byte);
        }
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' => self.escaped = true,
            b'"' => self.in_string = false,
            _ if self.depth == 1 && self.key.len() < MAX_KEY_BYTES => self.key.push(byte),
            _ => {}
        }
    }

    /// One more byte of the head; a head that is too long is cut, and so is no JSON.
    fn keep(&mut self, byte: u8) {
        if self.head.len() < MAX_HEAD_BYTES {
            self.head.push(byte);
        }
    }
}

/// Cuts a stream into lines.
#[derive(Debug, Default)]
pub struct Lines {
    line: Vec<u8>,
    oversized: bool,
    /// Lines left out because they were too long.
    pub skipped: u64,
}

impl Lines {
    /// Takes bytes as they come, and gives each line that is complete. What is cut off at the end is never given: the
    /// next watch begins before it.
    pub fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8])) {
        let mut pieces = bytes.split(|byte| *byte == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            if self.line.len() + piece.len() > MAX_OBJECT_BYTES {
                self.oversized = true;
                self.line = Vec::new();
            }
            if !self.oversized {
                self.line.extend_from_slice(piece);
            }
            if pieces.peek().is_none() {
                return;
            }
            match std::mem::take(&mut self.oversized) {
                true => self.skipped += 1,
                false if self.line.is_empty() => {}
                false => line(&self.line),
            }
            self.line.clear();
            self.line.shrink_to(MAX_OBJECT_BYTES / 16);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn cut(bytes: &[u8], sizes: &[usize]) -> (Vec<Value>, Option<Value>) {
        let (mut items, mut found, mut at) = (Items::default(), Vec::new(), 0);
        for size in sizes.iter().cycle() {
            if at == bytes.len() {
                break;
            }
            let end = (at + size).min(bytes.len());
            items.push(&bytes[at..end], |item| {
                found.push(serde_json::from_slice(item).unwrap());
            });
            at = end;
        }
        let head = items
            .head()
            .map(|head| serde_json::from_slice(head).unwrap());
        (found, head)
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z\"\\\\{}\\[\\],: ü\n]{0,12}".prop_map(Value::from),
            Just(Value::from("items")),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("(items|metadata|[\"\\\\{a])", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Whatever is in a list and however it arrives: its items, and the rest of it with none.
        #[test]
        fn lists_are_cut(
            objects in proptest::collection::vec(value().prop_map(|value| json!({"a": value})), 0..6),
            metadata in value(),
            sizes in proptest::collection::vec(1_usize..40, 1..20),
            pretty in any::<bool>(),
        ) {
            let list = json!({"kind": "PodList", "metadata": metadata, "items": objects, "z": "items"});
            let bytes = if pretty { serde_json::to_vec_pretty(&list) } else { serde_json::to_vec(&list) }.unwrap();
            let (found, head) = cut(&bytes, &sizes);
            prop_assert_eq!(found, objects);
            prop_assert_eq!(head, Some(json!({"kind": "PodList", "metadata": metadata, "items": [], "z": "items"})));
            prop_assert_eq!(cut(&bytes[..bytes.len() - 1], &sizes).1, None);
        }

        #[test]
        fn anything_is_cut(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'{'), Just(b'['), Just(b'}'), Just(b'"')], 0..300)) {
            let mut items = Items::default();
            items.push(&bytes, |_| ());
            items.head();
        }

        #[test]
        fn lines_are_cut(lines in proptest::collection::vec("[a-z]{0,8}", 0..10), sizes in proptest::collection::vec(1_usize..9, 1..9)) {
            let text = lines.join("\n") + "\ncut off";
            let (mut cutter, mut found, mut rest) = (Lines::default(), Vec::new(), text.as_bytes());
            for size in sizes.iter().cycle() {
                if rest.is_empty() { break; }
                let (now, later) = rest.split_at((*size).min(rest.len()));
                cutter.push(now, |line| found.push(String::from_utf8(line.to_vec()).unwrap()));
                rest = later;
            }
            let expected: Vec<_> = lines.into_iter().filter(|line| !line.is_empty()).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn null_items_are_none() {
        let (found, head) = cut(
            br#"{"metadata":{"resourceVersion":"7"},"items":null}"#,
            &[5],
        );
        assert!(found.is_empty());
        assert_eq!(head.unwrap()["metadata"]["resourceVersion"], "7");
    }

    #[test]
    fn what_is_too_large_is_left_out_and_counted() {
        let (mut items, mut found) = (Items::default(), 0);
        items.push(br#"{"items":[{"a":""#, |_| found += 1);
        for _ in 0..40 {
            items.push(&[b'x'; MAX_OBJECT_BYTES / 16], |_| found += 1);
        }
        assert!(items.item.capacity() <= 2 * MAX_OBJECT_BYTES);
        items.push(br#""},{"a":1}]}"#, |_| found += 1);
        assert_eq!((found, items.skipped), (1, 1));
        let (mut lines, mut found) = (Lines::default(), 0);
        for _ in 0..40 {
            lines.push(&[b'x'; MAX_OBJECT_BYTES / 16], |_| found += 1);
        }
        lines.push(b"\nshort\n", |_| found += 1);
        assert_eq!((found, lines.skipped), (1, 1));
    }
}
