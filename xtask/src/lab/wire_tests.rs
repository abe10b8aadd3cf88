use super::*;

fn samples() -> Vec<Frame> {
    vec![
        Frame::Argument(b"echo".to_vec()),
        Frame::Environment(vec![0xff, b'=', 0xfe]),
        Frame::Directory(Vec::new()),
        Frame::Start,
        Frame::Stdin(vec![0; MAX_PAYLOAD]),
        Frame::Signal(15),
        Frame::Beat,
        Frame::Ready,
        Frame::StdinTaken(0x0102_0304),
        Frame::Stdout(b"out".to_vec()),
        Frame::Stderr(b"err".to_vec()),
        Frame::Exit(255),
    ]
}

#[test]
fn frames_survive_the_wire_in_pieces_of_any_size() {
    let bytes: Vec<u8> = samples().iter().flat_map(Frame::encode).collect();
    for piece in [1, 2, 7, 4096, bytes.len()] {
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();
        for mut chunk in bytes.chunks(piece) {
            while !chunk.is_empty() {
                assert!(decoder.fill(&mut chunk).unwrap());
            }
            while let Some(frame) = decoder.next().unwrap() {
                seen.push(frame);
            }
        }
        assert_eq!(seen, samples(), "in pieces of {piece}");
    }
}

#[test]
fn nonsense_is_refused() {
    for bytes in [
        &b"Z\0\0\0\0"[..],
        b"X\x02\0\0\0ab",
        b"T\x01\0\0\0a",
        b"O\xff\xff\xff\xff",
    ] {
        let mut decoder = Decoder::default();
        decoder.fill(bytes).unwrap();
        assert!(decoder.next().is_err(), "{bytes:?}");
    }
}

#[test]
fn the_end_is_seen() {
    assert!(!Decoder::default().fill(&b""[..]).unwrap());
}
