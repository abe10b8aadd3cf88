//! The server's own code at a socket pair. What runs programs is tested in guests.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::request::{MAX_FRAME, MAX_TIMEOUT};
use super::*;

fn config() -> Config {
    Config {
        user: "nobody".to_owned(),
        home: "/".to_owned(),
        languages: Vec::new(),
        cgroups: PathBuf::new(),
    }
}

/// What comes back of these bytes, frame by frame.
fn answers(bytes: &[u8]) -> Vec<Value> {
    let (mut client, server) = UnixStream::pair().unwrap();
    client.write_all(bytes).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    serve_client(server.into(), &config()).unwrap();
    let mut all = Vec::new();
    if let Err(error) = client.read_to_end(&mut all) {
        // Of a UNIX socket that was closed before all was read from it (unix(7)).
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    let mut rest = &all[..];
    let mut answers = Vec::new();
    loop {
        match read_frame(&mut rest).unwrap() {
            Incoming::Frame(frame) => answers.push(serde_json::from_slice(&frame).unwrap()),
            Incoming::End if rest.is_empty() => return answers,
            other => panic!("{other:?}"),
        }
    }
}

fn framed(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

fn valid() -> Value {
    json!({
        "id": "1", "type": "execute", "language": "python", "code": "cHJpbnQoMSk=",
        "timeout": 1000, "memory_limit": 64 << 20,
    })
}

#[test]
fn a_request_is_read_as_it_was_meant() {
    let request = Request::parse(valid().to_string().as_bytes()).unwrap();
    assert_eq!(request.code, b"print(1)");
    assert_eq!(request.timeout, Duration::from_secs(1));
    assert_eq!(request.stdin, None);
    let mut with_input = valid();
    with_input["stdin"] = "aGk=".into();
    let request = Request::parse(with_input.to_string().as_bytes()).unwrap();
    assert_eq!(request.stdin.as_deref(), Some(&b"hi"[..]));
    with_input["stdin"] = Value::Null;
    let request = Request::parse(with_input.to_string().as_bytes()).unwrap();
    assert_eq!(request.stdin, None);
}

#[test]
fn every_field_that_is_wrong_or_missing_is_refused_by_its_name() {
    let wrong: &[(&str, Value)] = &[
        ("type", "run".into()),
        ("type", 1.into()),
        ("language", "".into()),
        ("language", "x".repeat(65).into()),
        ("code", "%%%".into()),
        ("code", "cHJpbnQoMSk".into()),
        ("code", 1.into()),
        ("code", base64(&vec![0; request::MAX_PART + 1]).into()),
        ("timeout", 0.into()),
        ("timeout", (-1).into()),
        ("timeout", 1.5.into()),
        ("timeout", "1".into()),
        ("timeout", (MAX_TIMEOUT + 1).into()),
        ("memory_limit", 1.into()),
        ("memory_limit", u64::MAX.into()),
        ("memory_limit", json!([])),
        ("stdin", "!".into()),
        ("stdin", json!({})),
        ("other", 1.into()),
    ];
    for (field, value) in wrong {
        let mut request = valid();
        request[field] = value.clone();
        let invalid = Request::parse(request.to_string().as_bytes()).unwrap_err();
        assert_eq!(invalid.id.as_deref(), Some("1"), "{field}");
        assert!(
            invalid.message.contains(field),
            "{field}: {}",
            invalid.message
        );
    }
    for field in ["id", "type", "language", "code", "timeout", "memory_limit"] {
        let mut request = valid();
        request.as_object_mut().unwrap().remove(field);
        let invalid = Request::parse(request.to_string().as_bytes()).unwrap_err();
        assert!(
            invalid.message.contains(field),
            "{field}: {}",
            invalid.message
        );
    }
    for id in [json!(1), json!(""), json!("x".repeat(257)), Value::Null] {
        let mut request = valid();
        request["id"] = id;
        let invalid = Request::parse(request.to_string().as_bytes()).unwrap_err();
        assert_eq!(invalid.id, None);
    }
}

#[test]
fn what_can_be_read_is_answered_and_what_follows_as_well() {
    let mut bytes = framed("no json");
    bytes.extend(framed("[]"));
    // Every field in its place, and no names.
    let by_position = json!(["1", "execute", "python", "cHJpbnQoMSk=", 1000, 67108864]);
    bytes.extend(framed(&by_position.to_string()));
    bytes.extend(framed(&"[".repeat(100_000)));
    bytes.extend(framed(&valid().to_string()));
    bytes.extend([0, 0, 0, 9, b'{']);
    let answers = answers(&bytes);
    let errors: Vec<_> = answers.iter().map(|it| it["error"].as_str()).collect();
    let (invalid, language) = (Some("invalid_request"), Some("unsupported_language"));
    assert_eq!(errors, [invalid, invalid, invalid, invalid, language]);
    assert!(answers[2]["id"].is_null());
    assert_eq!(answers[4]["id"], "1");
}

#[test]
fn what_the_guest_cannot_run_is_an_internal_error_and_the_connection_goes_on() {
    let (mut client, server) = UnixStream::pair().unwrap();
    let mut config = config();
    // What it starts to run programs is this very test's executable, which does not.
    config.cgroups = PathBuf::from("/there/is/no/such");
    config.languages = vec![Language {
        names: vec!["python".to_owned()],
        extension: "py".to_owned(),
        interpreter: vec!["python".to_owned()],
        inline: Some("-c".to_owned()),
        compile: None,
    }];
    let serving = std::thread::spawn(move || serve_client(server.into(), &config));
    for _ in 0..2 {
        client.write_all(&framed(&valid().to_string())).unwrap();
        let mut answer = || match read_frame(&mut client).unwrap() {
            Incoming::Frame(frame) => serde_json::from_slice::<Value>(&frame).unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(answer(), ack("1"));
        let error = answer();
        assert_eq!(
            (&error["type"], &error["error"], &error["id"]),
            (&"error".into(), &"internal_error".into(), &"1".into())
        );
        assert!(error["message"].is_string());
    }
    drop(client);
    serving.join().unwrap().unwrap();
}

#[test]
fn a_length_that_no_frame_has_is_answered_and_the_connection_closed() {
    for length in [0, MAX_FRAME + 1, u32::MAX] {
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend(framed("{}"));
        let answers = answers(&bytes);
        assert_eq!(answers.len(), 1, "{length}");
        assert_eq!(answers[0]["error"], "invalid_request");
        assert!(answers[0]["id"].is_null());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    /// Bytes as they come, in frames and out of them: none hangs or crashes, and each whole frame has
    /// one answer.
    #[test]
    fn random_bytes_are_answered(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..64), 0..4),
        rest in prop::collection::vec(any::<u8>(), 0..32),
    ) {
        let mut bytes = Vec::new();
        for frame in &frames {
            bytes.extend((frame.len() as u32).to_be_bytes());
            bytes.extend(frame);
        }
        bytes.extend(&rest);
        let answers = answers(&bytes);
        prop_assert!(answers.len() >= frames.len());
        prop_assert!(answers.iter().all(|it| it["error"] == "invalid_request"));
    }
}
