//! What clients send, judged field by field, and what they are answered.

use std::io::{self, Read, Write};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// The longest frame: a program and its input at their longest, in base64, and what is around them.
pub(super) const MAX_FRAME: u32 = 12 << 20;
/// The most bytes of a program, and of its input.
pub(super) const MAX_PART: usize = 4 << 20;
/// The most bytes of an id.
pub(super) const MAX_ID: usize = 256;
/// The most bytes of a language's name.
const MAX_LANGUAGE: usize = 64;
/// The longest timeout, in milliseconds.
pub(super) const MAX_TIMEOUT: u64 = 3_600_000;
/// The least and the most memory, in bytes.
pub(super) const MEMORY: std::ops::RangeInclusive<u64> = (1 << 20)..=(1 << 40);

/// What has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    Frame(Vec<u8>),
    /// Its length is none that a frame can have.
    Length(u32),
    /// The client has gone, perhaps within a frame.
    End,
}

/// Reads a frame. Memory is taken as its bytes come, not as its length says.
pub(super) fn read_frame(stream: &mut impl Read) -> io::Result<Incoming> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Incoming::End),
        Err(error) => return Err(error),
    }
    let length = u32::from_be_bytes(length);
    if !(1..=MAX_FRAME).contains(&length) {
        return Ok(Incoming::Length(length));
    }
    let mut bytes = Vec::new();
    stream.take(length.into()).read_to_end(&mut bytes)?;
    Ok(match bytes.len() == length as usize {
        true => Incoming::Frame(bytes),
        false => Incoming::End,
    })
}

/// Writes a frame.
pub(super) fn write_frame(stream: &mut impl Write, message: &Value) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    // In one piece: a frame that fits into a packet is one.
    stream.write_all(&[&length.to_be_bytes()[..], &text].concat())
}

/// What a client wants, with every field in its range. The language may be unknown still.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) id: String,
    pub(super) language: String,
    pub(super) code: Vec<u8>,
    pub(super) stdin: Option<Vec<u8>>,
    pub(super) timeout: Duration,
    pub(super) memory_limit: u64,
}

/// Why a request is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invalid {
    /// As far as it could be read.
    pub(super) id: Option<String>,
    pub(super) message: String,
}

/// The fields as they are written. Nothing in them is taken apart before it is known what it has to
/// be, so that no text is larger in memory than it is on the wire.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields<'a> {
    #[serde(borrow)]
    id: &'a RawValue,
    #[serde(borrow, rename = "type")]
    kind: &'a RawValue,
    #[serde(borrow)]
    language: &'a RawValue,
    #[serde(borrow)]
    code: &'a RawValue,
    #[serde(borrow)]
    timeout: &'a RawValue,
    #[serde(borrow)]
    memory_limit: &'a RawValue,
    #[serde(borrow, default)]
    stdin: Option<&'a RawValue>,
}

/// Of a request that is refused, whose.
#[derive(Deserialize)]
struct Whose<'a> {
    #[serde(borrow)]
    id: &'a RawValue,
}

impl Request {
    pub(super) fn parse(frame: &[u8]) -> Result<Self, Invalid> {
        // Fields are read from an array as well, in their order, and have names here.
        if !is_object(frame) {
            return Err(Invalid {
                id: None,
                message: "the frame is no request: it has to be an object".to_owned(),
            });
        }
        let whose = serde_json::from_slice::<Whose<'_>>(frame).ok();
        let id = whose.and_then(|whose| text("id", whose.id, MAX_ID).ok());
        Self::read(frame).map_err(|message| Invalid { id, message })
    }

    fn read(frame: &[u8]) -> Result<Self, String> {
        let fields: Fields<'_> = serde_json::from_slice(frame)
            .map_err(|error| format!("the frame is no request: {error}"))?;
        let id = text("id", fields.id, MAX_ID)?;
        let kind = text("type", fields.kind, MAX_LANGUAGE)?;
        if kind != "execute" {
            return Err(format!("the type {kind:?} is not known: `execute` is"));
        }
        let stdin = fields.stdin.filter(|stdin| stdin.get() != "null");
        Ok(Self {
            id,
            language: text("language", fields.language, MAX_LANGUAGE)?,
            code: bytes("code", fields.code)?,
            stdin: stdin.map(|stdin| bytes("stdin", stdin)).transpose()?,
            timeout: Duration::from_millis(number("timeout", fields.timeout, 1..=MAX_TIMEOUT)?),
            memory_limit: number("memory_limit", fields.memory_limit, MEMORY)?,
        })
    }
}

/// Whether JSON is an object, if it is any.
fn is_object(text: &[u8]) -> bool {
    let first = text.iter().find(|byte| !b" \t\n\r".contains(byte));
    first == Some(&b'{')
}

fn text(name: &str, value: &RawValue, most: usize) -> Result<String, String> {
    let wrong = || format!("`{name}` has to be a text of 1 to {most} bytes");
    // Escapes make a text longer on the wire, six bytes for one at the most.
    if value.get().len() > most.saturating_mul(6).saturating_add(2) {
        return Err(wrong());
    }
    let text: String = serde_json::from_str(value.get()).map_err(|_| wrong())?;
    match (1..=most).contains(&text.len()) {
        true => Ok(text),
        false => Err(wrong()),
    }
}

fn number(
    name: &str,
    value: &RawValue,
    range: std::ops::RangeInclusive<u64>,
) -> Result<u64, String> {
    let number: Option<u64> = serde_json::from_str(value.get()).ok();
    number
        .filter(|number| range.contains(number))
        .ok_or_else(|| {
            let (least, most) = range.into_inner();
            format!("`{name}` has to be a whole number from {least} to {most}")
        })
}

fn bytes(name: &str, value: &RawValue) -> Result<Vec<u8>, String> {
    let wrong = |why: &dyn std::fmt::Display| format!("`{name}` is no base64 text: {why}");
    let text: std::borrow::Cow<'_, str> =
        serde_json::from_str(value.get()).map_err(|error| wrong(&error))?;
    let bytes = STANDARD.decode(&*text).map_err(|error| wrong(&error))?;
    match bytes.len() > MAX_PART {
        true => Err(format!("`{name}` has more than {MAX_PART} bytes")),
        false => Ok(bytes),
    }
}

pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The names of errors.
pub(super) mod error {
    pub(in super::super) const INVALID: &str = "invalid_request";
    pub(in super::super) const INTERNAL: &str = "internal_error";
    pub(in super::super) const LANGUAGE: &str = "unsupported_language";
}

pub(super) fn error_message(id: Option<&str>, error: &str, message: &str) -> Value {
    json!({"id": id, "type": "error", "error": error, "message": message})
}

pub(super) fn ack(id: &str) -> Value {
    json!({"id": id, "type": "ack", "status": "received"})
}
