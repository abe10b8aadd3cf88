//! What a driver says, read: bytes in, values out, no I/O. None of it is to be trusted: the code that
//! an interpreter runs can say whatever the driver can.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

use super::cell::{CellError, CellEvent, Data, TraceFrame};

/// The most representations of one value.
const MAX_KINDS: usize = 32;
/// The longest name of a media type.
const MAX_KIND: usize = 128;
/// The most frames of one traceback.
const MAX_FRAMES: usize = 256;
/// The most events of one cell. Those of its streams are not counted: they are bounded by their bytes.
const MAX_EVENTS: usize = 4096;

/// What may still come of one cell.
#[derive(Debug)]
pub(super) struct Budget {
    stdout: usize,
    stderr: usize,
    data: usize,
    events: usize,
    /// An event, as far as it has come.
    line: Vec<u8>,
    /// The rest of this event is dropped.
    skipping: bool,
    /// Something was dropped.
    pub(super) truncated: bool,
}

impl Budget {
    pub(super) fn new(output: usize, data: usize) -> Self {
        Self {
            stdout: output,
            stderr: output,
            data,
            events: MAX_EVENTS,
            line: Vec::new(),
            skipping: false,
            truncated: false,
        }
    }

    /// As much as is kept of what was written.
    pub(super) fn output(&mut self, mut bytes: Vec<u8>, is_stdout: bool) -> Option<CellEvent> {
        let left = match is_stdout {
            true => &mut self.stdout,
            false => &mut self.stderr,
        };
        self.truncated |= bytes.len() > *left;
        bytes.truncate(*left);
        *left -= bytes.len();
        match (bytes.is_empty(), is_stdout) {
            (true, _) => None,
            (false, true) => Some(CellEvent::Stdout(bytes)),
            (false, false) => Some(CellEvent::Stderr(bytes)),
        }
    }

    /// Adds a part of an event; gives the event with its last part.
    pub(super) fn event(&mut self, part: &[u8], more: bool) -> Option<CellEvent> {
        let fits = self.events > 0 && part.len() <= self.data.saturating_sub(self.line.len());
        if !fits {
            self.skipping = true;
            self.line = Vec::new();
        }
        if !self.skipping {
            self.line.extend_from_slice(part);
        }
        if more {
            return None;
        }
        let line = std::mem::take(&mut self.line);
        let event = match std::mem::take(&mut self.skipping) {
            true => None,
            false => {
                self.events -= 1;
                self.data -= line.len();
                parse(&line)
            }
        };
        self.truncated |= event.is_none();
        event
    }
}

/// One event.
pub(super) fn parse(line: &[u8]) -> Option<CellEvent> {
    // Flat: what serde keeps of an enum until it knows its variant is many times what it came from.
    #[derive(Deserialize)]
    struct Said {
        r#type: Kind,
        #[serde(default, deserialize_with = "data")]
        data: BTreeMap<String, String>,
        #[serde(default)]
        name: String,
        #[serde(default)]
        message: String,
        #[serde(default)]
        traceback: String,
        #[serde(default, deserialize_with = "frames")]
        frames: Vec<TraceFrame>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        Value,
        Display,
        Error,
    }
    let said: Said = serde_json::from_slice(line).ok()?;
    let is_kind = |kind: &String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/+-._".contains(c);
        (1..=MAX_KIND).contains(&kind.len()) && kind.chars().all(plain)
    };
    Some(match said.r#type {
        Kind::Error => CellEvent::Error(CellError {
            name: said.name,
            message: said.message,
            traceback: said.traceback,
            frames: said.frames,
        }),
        _ if said.data.is_empty() || !said.data.keys().all(is_kind) => return None,
        Kind::Value => CellEvent::Value(Data(said.data)),
        Kind::Display => CellEvent::Display(Data(said.data)),
    })
}

fn data<'de, D: Deserializer<'de>>(input: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Few;
    impl<'de> Visitor<'de> for Few {
        type Value = BTreeMap<String, String>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX_KINDS} representations")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = BTreeMap::new();
            while let Some((kind, text)) = map.next_entry()? {
                found.insert(kind, text);
                if found.len() > MAX_KINDS {
                    return Err(serde::de::Error::invalid_length(found.len(), &self));
                }
            }
            Ok(found)
        }
    }
    input.deserialize_map(Few)
}

fn frames<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<TraceFrame>, D::Error> {
    struct Few(PhantomData<TraceFrame>);
    impl<'de> Visitor<'de> for Few {
        type Value = Vec<TraceFrame>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX_FRAMES} frames")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut found = Vec::new();
            while let Some(frame) = seq.next_element()? {
                found.push(frame);
                if found.len() > MAX_FRAMES {
                    return Err(serde::de::Error::invalid_length(found.len(), &self));
                }
            }
            Ok(found)
        }
    }
    input.deserialize_seq(Few(PhantomData))
}

#[cfg(test)]
mod tests;
