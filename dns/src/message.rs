//! Bytes to questions and answers. hickory-proto reads headers, names and records; what is kept of them is decided here.
//!
//! A message is read as far as it can be. Without its header and questions it is nothing, and an error; a record that
//! cannot be read later on leaves what was read before it, and [`Message::damaged`].

use std::net::IpAddr;

use hickory_proto::op::{Edns as HickoryEdns, Header, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::svcb::SvcParamValue;
use hickory_proto::rr::{Name, RData, Record as HickoryRecord, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use crate::name;

/// Bytes of a message's header.
pub const HEADER_BYTES: usize = 12;
/// Most questions read of one message. More than one is rare, and most servers refuse it.
pub const MAX_QUESTIONS: usize = 16;
/// Most answers kept of one message; [`Message::answer_total`] counts all that it says it has.
pub const MAX_RECORDS: usize = 256;

/// Response code: the name does not exist.
pub const NXDOMAIN: u16 = 3;

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than a header, or the header cannot be read.
    #[error("no header")]
    Header,
    /// A question cannot be read.
    #[error("a question that cannot be read")]
    Question,
    /// More than [`MAX_QUESTIONS`].
    #[error("more than {MAX_QUESTIONS} questions")]
    TooManyQuestions,
}

/// What is kept of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Chosen by who asks, repeated by who answers; 0 in multicast DNS.
    pub id: u16,
    /// A response, else a query.
    pub response: bool,
    /// What sort of query; 0 is the usual one.
    pub opcode: u8,
    /// The answer's flags.
    pub flags: Flags,
    /// Response code, with EDNS's upper bits.
    pub code: u16,
    /// What is asked.
    pub questions: Vec<Question>,
    /// Answers that name addresses or other names, in order; at most [`MAX_RECORDS`].
    pub answers: Vec<Record>,
    /// How many answers of any type the header says there are.
    pub answer_total: u16,
    /// The sender's EDNS parameters (RFC 6891), when it has any.
    pub edns: Option<Edns>,
    /// Something after the questions could not be read: the message was cut or is malformed. What was read stands.
    pub damaged: bool,
}

/// Flags of a header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// AA: the server is responsible for the name.
    pub authoritative: bool,
    /// TC: cut to what fits; to be asked again by TCP.
    pub truncated: bool,
    /// RD: the server is asked to ask others.
    pub recursion_desired: bool,
    /// RA: it would.
    pub recursion_available: bool,
    /// AD: the server has checked signatures.
    pub authentic: bool,
}

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// The name; see [`mod@crate::name`].
    pub name: String,
    /// Type of record, IANA number.
    pub qtype: u16,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The name it is about.
    pub name: String,
    /// What is said of it.
    pub data: Data,
    /// For how many seconds that may be kept.
    pub ttl: u32,
}

/// What an answer says of its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// A, AAAA, or a hint in HTTPS or SVCB: it has this address.
    Address(IpAddr),
    /// CNAME: it is this other name.
    Alias(String),
    /// PTR, SRV, MX, HTTPS, SVCB: it points to this other name.
    Target(String),
}

/// EDNS parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edns {
    /// Largest UDP message its sender takes.
    pub size: u16,
    /// Version.
    pub version: u8,
    /// DO: send signatures.
    pub dnssec_ok: bool,
}

impl Message {
    /// Reads a message.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut decoder = BinDecoder::new(bytes);
        let header = Header::read(&mut decoder).map_err(|_| Malformed::Header)?;
        let metadata = &header.metadata;
        let mut message = Self {
            id: metadata.id,
            response: metadata.message_type == MessageType::Response,
            opcode: opcode(metadata.op_code),
            flags: Flags {
                authoritative: metadata.authoritative,
                truncated: metadata.truncation,
                recursion_desired: metadata.recursion_desired,
                recursion_available: metadata.recursion_available,
                authentic: metadata.authentic_data,
            },
            code: metadata.response_code.into(),
            answer_total: header.counts.answers,
            ..Self::default()
        };
        if usize::from(header.counts.queries) > MAX_QUESTIONS {
            return Err(Malformed::TooManyQuestions);
        }
        for _ in 0..header.counts.queries {
            let query = Query::read(&mut decoder).map_err(|_| Malformed::Question)?;
            message.questions.push(Question {
                name: text(query.name()),
                qtype: query.query_type().into(),
            });
        }
        message.damaged = message.sections(&mut decoder, &header).is_none();
        Ok(message)
    }

    /// The three sections of records. `None` where one cannot be read.
    fn sections(&mut self, decoder: &mut BinDecoder<'_>, header: &Header) -> Option<()> {
        for _ in 0..header.counts.answers {
            let record = HickoryRecord::read(decoder).ok()?;
            self.answer(&record);
        }
        for _ in 0..header.counts.authorities {
            HickoryRecord::read(decoder).ok()?;
        }
        for _ in 0..header.counts.additionals {
            let record = HickoryRecord::read(decoder).ok()?;
            if record.record_type() == RecordType::OPT {
                let edns = HickoryEdns::from(&record);
                self.code = (self.code & 0xf) | u16::from(edns.rcode_high()) << 4;
                self.edns = Some(Edns {
                    size: edns.max_payload(),
                    version: edns.version(),
                    dnssec_ok: edns.flags().dnssec_ok,
                });
            }
        }
        Some(())
    }

    fn answer(&mut self, record: &HickoryRecord) {
        let mut keep = |data| {
            if self.answers.len() < MAX_RECORDS {
                self.answers.push(Record {
                    name: text(&record.name),
                    data,
                    ttl: record.ttl,
                });
            }
        };
        match &record.data {
            RData::A(address) => keep(Data::Address(address.0.into())),
            RData::AAAA(address) => keep(Data::Address(IpAddr::V6(address.0).to_canonical())),
            RData::CNAME(target) => keep(Data::Alias(text(target))),
            RData::PTR(target) => keep(Data::Target(text(target))),
            RData::SRV(service) => keep(Data::Target(text(&service.target))),
            RData::MX(exchange) => keep(Data::Target(text(&exchange.exchange))),
            RData::HTTPS(_) | RData::SVCB(_) => {
                let service = match &record.data {
                    RData::HTTPS(https) => &https.0,
                    RData::SVCB(service) => service,
                    _ => return,
                };
                if !service.target_name.is_root() {
                    keep(Data::Target(text(&service.target_name)));
                }
                for (_, value) in &service.svc_params {
                    match value {
                        SvcParamValue::Ipv4Hint(hint) => hint
                            .0
                            .iter()
                            .for_each(|address| keep(Data::Address(address.0.into()))),
                        SvcParamValue::Ipv6Hint(hint) => hint
                            .0
                            .iter()
                            .for_each(|address| keep(Data::Address(address.0.into()))),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }

    /// The answers to one of the questions: of its name, and of the names that it is an alias of.
    pub fn answers_to<'a>(&'a self, question: &'a Question) -> Vec<&'a Record> {
        if self.questions.len() <= 1 {
            return self.answers.iter().collect();
        }
        let mut names = vec![question.name.as_str()];
        let mut found = Vec::new();
        // Chains are answered in order; whoever does not keep to it loses only the tail.
        for record in &self.answers {
            if names.contains(&record.name.as_str()) {
                if let Data::Alias(target) = &record.data {
                    names.push(target);
                }
                found.push(record);
            }
        }
        found
    }
}

fn text(name: &Name) -> String {
    name::text(name.iter())
}

fn opcode(code: OpCode) -> u8 {
    code.into()
}
