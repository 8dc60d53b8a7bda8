//! What is spoken on a connection, by its first bytes each way. Pure; the bytes are a stranger's.
//!
//! Only what a protocol's own specification fixes counts, and enough of it that other traffic does not pass by chance: a
//! wrong answer is worse than none. Where a port would be needed to decide, the answer is [`Application::Unknown`].

use weft_wire::{Application, MAX_NAME_BYTES, NameSource};

/// The name under which a client called its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Lower-case, without port or final dot.
    pub name: String,
    /// Where it stood.
    pub source: NameSource,
}

/// Shortest beginning of HTTP/2's preface that no HTTP/1 request can have.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
const HTTP1_METHODS: [&[u8]; 9] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
    b"CONNECT ",
    b"TRACE ",
];
/// Protocol 3 of PostgreSQL's startup message, and the codes that stand in its place.
const POSTGRES_CODES: [u32; 4] = [196_608, 80_877_102, 80_877_103, 80_877_104];
/// Longest startup message that PostgreSQL takes.
const POSTGRES_STARTUP_MAX: u32 = 10_000;
/// `OP_QUERY`, `OP_COMPRESSED`, `OP_MSG`.
const MONGODB_OPERATIONS: [u32; 3] = [2004, 2012, 2013];
const MONGODB_MESSAGE_MAX: u32 = 48_000_000;
/// Longest request that a Kafka broker takes by default.
const KAFKA_REQUEST_MAX: u32 = 104_857_600;
/// Highest API key and version that any Kafka has, with room.
const KAFKA_KEY_MAX: u16 = 100;
const KAFKA_VERSION_MAX: u16 = 30;
/// `ApiVersions`, which a client asks first.
const KAFKA_API_VERSIONS: u16 = 18;

/// What the first bytes from the client and from the server say. Either may be empty, and either may be cut.
pub fn detect(client: &[u8], server: &[u8]) -> (Application, Option<Named>) {
    if tls(client, server) {
        return (Application::Tls, server_name(client).and_then(sni));
    }
    if client.starts_with(HTTP2_PREFACE) {
        return (Application::Http2, None);
    }
    if http1_request(client) || server.starts_with(b"HTTP/1.1 ") || server.starts_with(b"HTTP/1.0 ")
    {
        return (Application::Http1, http_host(client));
    }
    let found = [
        (postgres(client), Application::Postgres),
        (amqp(client), Application::Amqp),
        (mysql(server), Application::Mysql),
        (mongodb(client), Application::Mongodb),
        (redis(client, server), Application::Redis),
        (dns(client), Application::Dns),
        (kafka(client, server), Application::Kafka),
    ];
    let application = found.into_iter().find_map(|(is, what)| is.then_some(what));
    (application.unwrap_or_default(), None)
}

/// A handshake record with a ClientHello. OpenSSL reads a record's header by itself: a server that does has no more of it than
/// that, and what it answers says the rest.
fn tls(client: &[u8], server: &[u8]) -> bool {
    const CLIENT_HELLO: u8 = 1;
    const SERVER_HELLO: u8 = 2;
    match handshake(client) {
        Some([sort, ..]) => *sort == CLIENT_HELLO,
        Some([]) => handshake(server).is_some_and(|rest| rest.first() == Some(&SERVER_HELLO)),
        None => false,
    }
}

/// What follows the header of a handshake record that is long enough for a greeting.
fn handshake(bytes: &[u8]) -> Option<&[u8]> {
    let [0x16, 3, minor, high, low, rest @ ..] = bytes else {
        return None;
    };
    let record = u16::from_be_bytes([*high, *low]);
    // A record has at most 2^14 bytes; a greeting at least 42.
    (*minor <= 4 && (42..=16_384).contains(&record)).then_some(rest)
}

/// The server name of a ClientHello, if it stands in what there is of it (RFC 8446, 4.1.2; RFC 6066, 3).
fn server_name(client: &[u8]) -> Option<&[u8]> {
    // Record header, handshake header, version, random.
    let mut rest = Reader(client.get(5 + 4 + 2 + 32..)?);
    rest.counted8()?;
    rest.counted16()?;
    rest.counted8()?;
    rest.number16()?;
    loop {
        let sort = rest.number16()?;
        let body = rest.counted16()?;
        if sort != 0 {
            continue;
        }
        let mut list = Reader(body);
        let mut names = Reader(list.counted16()?);
        return match names.take(1)? {
            [0] => names.counted16(),
            _ => None,
        };
    }
}

fn sni(name: &[u8]) -> Option<Named> {
    named(name, NameSource::Sni)
}

/// A name as hosts are called, or nothing: what is shown to people is not taken from strangers unchecked.
fn named(name: &[u8], source: NameSource) -> Option<Named> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.iter().all(plain) {
        return None;
    }
    // An address is no name.
    if name
        .iter()
        .all(|byte| byte.is_ascii_digit() || *byte == b'.')
    {
        return None;
    }
    Some(Named {
        name: String::from_utf8_lossy(name).to_ascii_lowercase(),
        source,
    })
}

/// A method, a target, and, if the line ends within what there is, the version.
fn http1_request(client: &[u8]) -> bool {
    let Some(method) = HTTP1_METHODS
        .iter()
        .find(|method| client.starts_with(method))
    else {
        return false;
    };
    let rest = &client[method.len()..];
    if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = &rest[..end];
        return line.windows(8).any(|window| window == b" HTTP/1.");
    }
    rest.iter()
        .all(|byte| (0x21..0x7f).contains(byte) || *byte == b' ')
        && rest.len() > 32
}

/// The host that an HTTP/1 request is for.
fn http_host(client: &[u8]) -> Option<Named> {
    let mut lines = client.split(|byte| *byte == b'\n').skip(1);
    let value = loop {
        let line = lines.next()?;
        let (name, value) = line.split_at_checked(5)?;
        if name.eq_ignore_ascii_case(b"host:") {
            // A line that is cut has no end.
            break value.strip_suffix(b"\r")?.trim_ascii();
        }
    };
    let end = value.iter().position(|byte| *byte == b':');
    named(&value[..end.unwrap_or(value.len())], NameSource::HttpHost)
}

/// A startup message, or one of the requests that come before it.
fn postgres(client: &[u8]) -> bool {
    let (Some(length), Some(code)) = (number32(client, 0), number32(client, 4)) else {
        return false;
    };
    if !POSTGRES_CODES.contains(&code) || !(8..=POSTGRES_STARTUP_MAX).contains(&length) {
        return false;
    }
    // Parameters follow the version, `user` among them; nothing follows the other codes but a key to cancel with.
    code != POSTGRES_CODES[0]
        || client
            .get(8..)
            .is_some_and(|rest| rest.first().is_some_and(u8::is_ascii_lowercase))
}

fn amqp(client: &[u8]) -> bool {
    matches!(
        client.get(..8),
        Some(
            b"AMQP\x00\x00\x09\x01"
                | b"AMQP\x00\x01\x00\x00"
                | b"AMQP\x03\x01\x00\x00"
                | b"AMQP\x02\x01\x00\x00"
        )
    )
}

/// The server's greeting: packet 0, protocol 10, a version, a NUL.
fn mysql(server: &[u8]) -> bool {
    let Some([a, b, c, 0, 10, rest @ ..]) = server.get(..).filter(|bytes| bytes.len() > 8) else {
        return false;
    };
    let length = u32::from_le_bytes([*a, *b, *c, 0]);
    let Some(end) = rest.iter().position(|byte| *byte == 0) else {
        return false;
    };
    (20..1_024).contains(&length)
        && rest.first().is_some_and(u8::is_ascii_digit)
        && rest[..end].iter().all(u8::is_ascii_graphic)
        && rest[..end].contains(&b'.')
}

fn mongodb(client: &[u8]) -> bool {
    let field = |at: usize| {
        let bytes = client.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes))
    };
    let (Some(length), Some(answered), Some(operation)) = (field(0), field(8), field(12)) else {
        return false;
    };
    (26..MONGODB_MESSAGE_MAX).contains(&length)
        && answered == 0
        && MONGODB_OPERATIONS.contains(&operation)
}

/// A command as an array of strings; or an inline command that is answered as only Redis does.
fn redis(client: &[u8], server: &[u8]) -> bool {
    if let Some((count, rest)) = redis_number(client, b'*') {
        return (1..1_000_000).contains(&count)
            && (rest.is_empty() || redis_number(rest, b'$').is_some());
    }
    let word = client.split(|byte| *byte == b'\r' || *byte == b' ').next();
    let inline = [&b"PING"[..], b"AUTH", b"INFO", b"SELECT", b"HELLO"];
    let answered = [
        &b"+PONG\r\n"[..],
        b"+OK\r\n",
        b"-NOAUTH",
        b"-ERR ",
        b"$",
        b"%",
        b"*",
    ];
    word.is_some_and(|word| inline.iter().any(|known| word.eq_ignore_ascii_case(known)))
        && client.ends_with(b"\r\n")
        && answered.iter().any(|start| server.starts_with(start))
}

/// `*3\r\n`: a sign, digits, an end of line; and what follows.
fn redis_number(bytes: &[u8], sign: u8) -> Option<(u32, &[u8])> {
    let rest = bytes.strip_prefix(&[sign])?;
    let end = rest.iter().take(10).position(|byte| *byte == b'\r')?;
    let digits = std::str::from_utf8(&rest[..end]).ok()?;
    let number = digits
        .parse()
        .ok()
        .filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    Some((number, rest[end..].strip_prefix(b"\r\n")?))
}

/// A query with one question, after its length (RFC 1035, 4.2.2).
fn dns(client: &[u8]) -> bool {
    let mut message = Reader(client);
    let Some(length) = message.number16() else {
        return false;
    };
    let Some([_, _, flags_high, flags_low, 0, 1, 0, 0, 0, 0, 0, additional]) = message.take(12)
    else {
        return false;
    };
    // A query: not an answer, not truncated; the operation QUERY; no code.
    let query = flags_high & 0b1111_1110 == 0 && flags_low & 0b0100_1111 == 0;
    query && *additional <= 2 && (17..=4_096).contains(&length) && dns_question(message)
}

/// A name, a type, a class. What is cut off is not held against it, if the name has begun.
fn dns_question(mut rest: Reader<'_>) -> bool {
    let mut labels = 0;
    loop {
        match rest.take(1) {
            Some([0]) => break,
            Some([length @ 1..=63]) => match rest.take(usize::from(*length)) {
                Some(label) if label.iter().all(|byte| byte.is_ascii_graphic()) => labels += 1,
                Some(_) => return false,
                None => return labels > 0,
            },
            Some(_) => return false,
            None => return labels > 0,
        }
    }
    rest.number16();
    matches!(rest.number16(), Some(1 | 3 | 4 | 255) | None)
}

/// A request's header, and either the answer to just this request, or the request that every client begins with.
fn kafka(client: &[u8], server: &[u8]) -> bool {
    let mut header = Reader(client);
    let (Some(size), Some(key), Some(version), Some(correlation), Some(id_length)) = (
        header.number32(),
        header.number16(),
        header.number16(),
        header.number32(),
        header.number16(),
    ) else {
        return false;
    };
    let plausible = (10..KAFKA_REQUEST_MAX).contains(&size)
        && key <= KAFKA_KEY_MAX
        && version <= KAFKA_VERSION_MAX;
    let name = match id_length {
        // No client id.
        0xffff => Some(&[][..]),
        length => header.take(usize::from(length)),
    };
    let Some(name) = name.filter(|name| name.iter().all(u8::is_ascii_graphic)) else {
        return false;
    };
    let answered = number32(server, 4) == Some(correlation)
        && number32(server, 0).is_some_and(|size| size >= 4);
    plausible && (answered || (key == KAFKA_API_VERSIONS && server.is_empty() && !name.is_empty()))
}

fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Takes bytes off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number16(&mut self) -> Option<u16> {
        self.take(2)
            .map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn number32(&mut self) -> Option<u32> {
        self.take(4).and_then(|bytes| number32(bytes, 0))
    }

    /// Bytes after a length of one byte.
    fn counted8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }

    /// Bytes after a length of two bytes.
    fn counted16(&mut self) -> Option<&'a [u8]> {
        let length = self.number16()?;
        self.take(usize::from(length))
    }
}

#[cfg(test)]
mod tests;
