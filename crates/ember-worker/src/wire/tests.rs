use std::os::unix::net::UnixStream;

use super::*;

#[test]
fn frames_stay_apart_and_come_with_their_descriptors() {
    let (one, other) = pair().unwrap();
    let file = sealed_file([&b"content"[..]]).unwrap();
    send(one.as_fd(), b"first", &[file.as_fd()], true).unwrap();
    send(one.as_fd(), b"second", &[], true).unwrap();
    let first = receive(other.as_fd(), true, true).unwrap();
    assert_eq!(first.frame, b"first");
    let [descriptor] = <[OwnedFd; 1]>::try_from(first.descriptors).unwrap();
    let bytes = read_whole_file(&File::from(descriptor), 100).unwrap();
    assert_eq!(bytes, b"content");
    let second = receive(other.as_fd(), true, true).unwrap();
    assert_eq!(second.frame, b"second");
    assert!(second.descriptors.is_empty());
    let none = receive(other.as_fd(), true, false).unwrap_err();
    assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
    drop(one);
    assert!(receive(other.as_fd(), true, true).unwrap().frame.is_empty());
}

#[test]
fn descriptors_that_are_not_expected_are_refused_and_closed() {
    let (one, other) = pair().unwrap();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    send(one.as_fd(), b"frame", &[theirs.as_fd()], true).unwrap();
    drop(theirs);
    let refused = receive(other.as_fd(), false, true).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    // The end of the stream: nobody has its other end.
    assert_eq!(io::Read::read(&mut ours, &mut [0]).unwrap(), 0);
}

#[test]
fn a_frame_that_is_too_long_is_refused() {
    let (one, other) = pair().unwrap();
    send(one.as_fd(), &vec![1; MAX_FRAME + 1], &[], true).unwrap();
    let refused = receive(other.as_fd(), false, true).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn who_does_not_receive_holds_nobody_up() {
    let (one, _other) = pair().unwrap();
    let frame = vec![1; MAX_FRAME];
    let error = (0..1000)
        .find_map(|_| send(one.as_fd(), &frame, &[], false).err())
        .unwrap();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_file_is_read_within_its_limit_and_never_changed() {
    let file = sealed_file([&b"01234"[..], b"56789"]).unwrap();
    assert_eq!(read_file(&file, 4, 10).unwrap(), b"0123");
    for (length, limit) in [(11, 100), (10, 9), (u64::MAX, u64::MAX)] {
        let error = read_file(&file, length, limit).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
    assert!(file.write_all_at(b"x", 0).is_err());
    assert!(file.set_len(0).is_err());
}
