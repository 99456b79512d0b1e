//! Frames of AMQP 0-9-1 as the broker sends them, made safe for a parser that recurses and that expects UTF-8.
//!
//! lapin parses tables recursively, so that nested headers of one message overflow its stack, which ends the process; and it
//! ends the connection over a short string that is not UTF-8. The broker delivers either message again to the next host. See
//! <https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf> (4.2) for frames and
//! <https://www.rabbitmq.com/amqp-0-9-1-errata> for the types of fields.

/// Tables and arrays in one another, at most. The event that is made of them is JSON, which its reader bounds at 128.
pub(super) const HEADER_DEPTH_MAX: usize = 32;
/// Bytes of a message's headers, at most. A copy of it gets some of ours, and some of the broker wherever it waits, and has to fit into
/// a frame with all of them.
pub(super) const HEADERS_MAX_BYTES: usize = 64 << 10;
/// Stands alone in the headers of a message whose own could not be parsed; its value says why.
pub(super) const UNREADABLE_HEADER: &str = "x-atelier-unreadable-headers";

/// Type, channel and size.
pub(super) const HEAD_BYTES: usize = 7;
/// The byte behind every payload.
pub(super) const END_BYTES: usize = 1;
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const CLASS_CONNECTION: u16 = 10;
const METHOD_TUNE: u16 = 30;
const CLASS_BASIC: u16 = 60;
const METHOD_DELIVER: u16 = 60;
/// Class, weight and the body's size, before the flags.
const CONTENT_HEAD_BYTES: usize = 12;
const CONTENT_TYPE: u16 = 1 << 15;
const CONTENT_ENCODING: u16 = 1 << 14;
const HEADERS: u16 = 1 << 13;
const DELIVERY_MODE: u16 = 1 << 12;
const PRIORITY: u16 = 1 << 11;
const TIMESTAMP: u16 = 1 << 6;
/// What follows the headers, in its order; the others of the list are short strings.
const AFTER_HEADERS: [u16; 11] =
    [DELIVERY_MODE, PRIORITY, 1 << 10, 1 << 9, 1 << 8, 1 << 7, TIMESTAMP, 1 << 5, 1 << 4, 1 << 3, 1 << 2];

const TOO_LARGE: &str = "the headers have more than 64 KiB, or than half of the broker's frame_max";

/// Bytes of the payload that `head` announces.
pub(super) fn payload_bytes(head: [u8; HEAD_BYTES]) -> usize {
    u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize
}

/// How large headers may be where this frame is the broker's proposal of limits (`connection.tune`): half of a frame. Zero is no
/// limit of the broker's.
pub(super) fn headers_max_bytes(frame: &[u8]) -> Option<usize> {
    if frame[0] != METHOD {
        return None;
    }
    let mut reader = Reader::new(payload(frame)?);
    if (reader.short()?, reader.short()?) != (CLASS_CONNECTION, METHOD_TUNE) {
        return None;
    }
    // The most channels come first.
    reader.short()?;
    let frame_max = reader.long()? as usize;
    Some(if frame_max == 0 { HEADERS_MAX_BYTES } else { (frame_max / 2).min(HEADERS_MAX_BYTES) })
}

fn payload(frame: &[u8]) -> Option<&[u8]> {
    frame.get(HEAD_BYTES..frame.len().checked_sub(END_BYTES)?)
}

/// The frame, from its type to its last byte, as it can be parsed: with `?` for what is no UTF-8 in a short string, and with
/// [`UNREADABLE_HEADER`] for headers that nest too deep or have more than `headers_max` bytes. None: it is fine as it is, or not of a
/// message.
pub(super) fn sanitized(frame: &[u8], headers_max: usize) -> Option<Vec<u8>> {
    let payload = payload(frame)?;
    let safe = match frame[0] {
        METHOD => deliver(payload),
        HEADER => content_header(payload, headers_max),
        _ => None,
    }?;
    (safe != payload).then(|| {
        let mut sanitized = frame[..3].to_vec();
        sanitized.extend((safe.len() as u32).to_be_bytes());
        sanitized.extend(safe);
        sanitized.extend(&frame[frame.len() - END_BYTES..]);
        sanitized
    })
}

/// `basic.deliver`: consumer tag, delivery tag, redelivered, exchange, routing key.
fn deliver(payload: &[u8]) -> Option<Vec<u8>> {
    let mut reader = Reader::new(payload);
    if (reader.short()?, reader.short()?) != (CLASS_BASIC, METHOD_DELIVER) {
        return None;
    }
    reader.short_string()?;
    reader.skip(9)?;
    reader.short_string()?;
    reader.short_string()?;
    Some(reader.into_bytes())
}

/// The properties of a message.
fn content_header(payload: &[u8], headers_max: usize) -> Option<Vec<u8>> {
    let mut reader = Reader::new(payload);
    reader.skip(CONTENT_HEAD_BYTES)?;
    let flags = reader.short()?;
    for flag in [CONTENT_TYPE, CONTENT_ENCODING] {
        if flags & flag != 0 {
            reader.short_string()?;
        }
    }
    if flags & HEADERS != 0 {
        let start = reader.at;
        let bytes = reader.long()? as usize;
        let end = reader.at.checked_add(bytes).filter(|end| *end <= payload.len())?;
        let read = reader.table(end).and(if bytes > headers_max { Err(TOO_LARGE) } else { Ok(()) });
        if let Err(problem) = read {
            let unreadable = unreadable(problem);
            reader.bytes.splice(start..end, unreadable.iter().copied());
            reader.at = start + unreadable.len();
        }
    }
    for flag in AFTER_HEADERS.into_iter().filter(|flag| flags & flag != 0) {
        match flag {
            DELIVERY_MODE | PRIORITY => reader.skip(1)?,
            TIMESTAMP => reader.skip(8)?,
            _ => reader.short_string()?,
        }
    }
    Some(reader.into_bytes())
}

/// A table with [`UNREADABLE_HEADER`] and nothing else.
fn unreadable(problem: &str) -> Vec<u8> {
    let mut entry = vec![UNREADABLE_HEADER.len() as u8];
    entry.extend(UNREADABLE_HEADER.as_bytes());
    entry.push(b'S');
    entry.extend((problem.len() as u32).to_be_bytes());
    entry.extend(problem.as_bytes());
    let mut table = (entry.len() as u32).to_be_bytes().to_vec();
    table.extend(entry);
    table
}

/// Walks over a payload and replaces what is no UTF-8 where it must be.
struct Reader {
    bytes: Vec<u8>,
    at: usize,
}

/// What is being walked through: where it ends, and whether its values have names.
struct Level {
    end: usize,
    named: bool,
}

impl Reader {
    fn new(payload: &[u8]) -> Self {
        Self { bytes: payload.to_vec(), at: 0 }
    }

    fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.at = self.at.checked_add(bytes).filter(|end| *end <= self.bytes.len())?;
        Some(())
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let start = self.at;
        self.skip(N)?;
        self.bytes[start..self.at].try_into().ok()
    }

    fn short(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn long(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn short_string(&mut self) -> Option<()> {
        let [bytes] = self.take()?;
        let start = self.at;
        self.skip(bytes.into())?;
        let text = &mut self.bytes[start..self.at];
        if std::str::from_utf8(text).is_err() {
            // One byte for one byte: nothing moves.
            text.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
        }
        Some(())
    }

    /// Walks through a table that ends at `end`, without recursion.
    fn table(&mut self, end: usize) -> Result<(), &'static str> {
        const BROKEN: &str = "the headers are broken off";
        let mut levels = vec![Level { end, named: true }];
        while let Some(level) = levels.last() {
            if self.at == level.end {
                levels.pop();
                continue;
            }
            let end = level.end;
            if level.named {
                self.short_string().ok_or(BROKEN)?;
            }
            let [kind] = self.take().ok_or(BROKEN)?;
            match kind {
                b'V' => {}
                b't' | b'b' | b'B' => self.skip(1).ok_or(BROKEN)?,
                b's' | b'U' | b'u' => self.skip(2).ok_or(BROKEN)?,
                b'I' | b'i' | b'f' => self.skip(4).ok_or(BROKEN)?,
                b'D' => self.skip(5).ok_or(BROKEN)?,
                b'L' | b'l' | b'd' | b'T' => self.skip(8).ok_or(BROKEN)?,
                b'S' | b'x' => {
                    let bytes = self.long().ok_or(BROKEN)?;
                    self.skip(bytes as usize).ok_or(BROKEN)?;
                }
                b'F' | b'A' => {
                    let bytes = self.long().ok_or(BROKEN)?;
                    let inner = self.at.checked_add(bytes as usize).ok_or(BROKEN)?;
                    if levels.len() == HEADER_DEPTH_MAX {
                        return Err("the headers nest deeper than 32 tables or arrays");
                    }
                    if inner <= end {
                        levels.push(Level { end: inner, named: kind == b'F' });
                        continue;
                    }
                    return Err(BROKEN);
                }
                _ => return Err("the headers hold a value of a type that AMQP does not have"),
            }
            if self.at > end {
                return Err(BROKEN);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nested(depth: usize) -> Vec<u8> {
        let mut table = vec![0; 4];
        for _ in 1..depth {
            let mut outer = (table.len() as u32 + 3).to_be_bytes().to_vec();
            outer.extend(b"\x01aF");
            outer.extend(table);
            table = outer;
        }
        table
    }

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, 1];
        frame.extend((payload.len() as u32).to_be_bytes());
        frame.extend(payload);
        frame.push(0xce);
        frame
    }

    /// The header frame of a message with these headers, a content type before them and a message id behind them.
    fn message(headers: &[u8], id: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
        payload.extend((CONTENT_TYPE | HEADERS | DELIVERY_MODE | (1 << 7)).to_be_bytes());
        payload.extend(b"\x04text");
        payload.extend(headers);
        payload.push(2);
        payload.push(id.len() as u8);
        payload.extend(id);
        frame(HEADER, &payload)
    }

    #[test]
    fn headers_that_nest_no_deeper_than_allowed_stay() {
        assert_eq!(sanitized(&message(&nested(HEADER_DEPTH_MAX), b"m-1"), HEADERS_MAX_BYTES), None);
    }

    #[test]
    fn headers_that_nest_deeper_are_replaced_and_the_rest_stays() {
        for depth in [HEADER_DEPTH_MAX + 1, 1_000, 18_000] {
            let problem = "the headers nest deeper than 32 tables or arrays";
            assert_eq!(
                sanitized(&message(&nested(depth), b"m-1"), HEADERS_MAX_BYTES),
                Some(message(&unreadable(problem), b"m-1")),
                "{depth}"
            );
        }
    }

    #[test]
    fn headers_that_would_leave_no_room_in_a_frame_are_replaced() {
        let filled = |bytes: usize| {
            let text = bytes - 2 - 1 - 4;
            let mut table = (bytes as u32).to_be_bytes().to_vec();
            table.extend(b"\x01kS");
            table.extend((text as u32).to_be_bytes());
            table.extend(vec![b'x'; text]);
            table
        };
        let too_large = Some(message(&unreadable(TOO_LARGE), b"m-1"));
        assert_eq!(sanitized(&message(&filled(HEADERS_MAX_BYTES), b"m-1"), HEADERS_MAX_BYTES), None);
        assert_eq!(sanitized(&message(&filled(HEADERS_MAX_BYTES + 1), b"m-1"), HEADERS_MAX_BYTES), too_large);
        assert_eq!(sanitized(&message(&filled(130_900), b"m-1"), HEADERS_MAX_BYTES), too_large);
        assert_eq!(sanitized(&message(&filled(4_097), b"m-1"), 4_096), too_large);
    }

    #[test]
    fn the_brokers_proposal_says_how_large_headers_may_be() {
        for (frame_max, headers) in [(0_u32, 65_536), (131_072, 65_536), (1 << 20, 65_536), (8_192, 4_096)] {
            let frame_max_bytes = frame_max.to_be_bytes();
            let tune = frame(METHOD, &[b"\0\x0a\0\x1e\x07\xff".as_slice(), &frame_max_bytes, b"\0\x3c"].concat());
            assert_eq!(headers_max_bytes(&tune), Some(headers), "{frame_max}");
        }
        assert_eq!(headers_max_bytes(&message(&nested(1), b"m")), None);
    }

    #[test]
    fn short_strings_that_are_no_utf_8_can_be_read() {
        assert_eq!(sanitized(&message(&nested(1), b"a\xff\xfeb"), HEADERS_MAX_BYTES), Some(message(&nested(1), b"a??b")));
        let named = |name: &[u8; 2]| [b"\0\0\0\x05\x02".as_slice(), name, b"tX"].concat();
        assert_eq!(sanitized(&message(&named(b"\xffk"), b"m"), HEADERS_MAX_BYTES), Some(message(&named(b"?k"), b"m")));
        let delivery =
            |key: &[u8; 3]| frame(METHOD, &[b"\0\x3c\0\x3c\x01c\0\0\0\0\0\0\0\x01\x00\x00\x03".as_slice(), key].concat());
        assert_eq!(sanitized(&delivery(b"a\xffb"), HEADERS_MAX_BYTES), Some(delivery(b"a?b")));
        assert_eq!(sanitized(&delivery("aü".as_bytes().try_into().unwrap()), HEADERS_MAX_BYTES), None);
    }

    proptest! {
        #[test]
        fn no_frame_is_too_odd(kind in 0_u8..9, payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = sanitized(&frame(kind, &payload), HEADERS_MAX_BYTES);
        }

        #[test]
        fn no_headers_are_too_odd(headers in proptest::collection::vec(any::<u8>(), 0..300)) {
            let table = [&(headers.len() as u32).to_be_bytes()[..], &headers].concat();
            if let Some(safe) = sanitized(&message(&table, b"m"), HEADERS_MAX_BYTES) {
                prop_assert_eq!(sanitized(&safe, HEADERS_MAX_BYTES), None, "what was made safe is safe");
            }
        }
    }
}
