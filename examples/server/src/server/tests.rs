//! Connections of clients that do not do their part. Time is the runtime's own here, and passes when
//! everybody waits for it.

use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;

/// A server of packs that are not ready.
async fn serve(arguments: &[&str]) -> (SocketAddr, JoinHandle<()>) {
    let options = Options::parse_from(["ember-server"].iter().chain(arguments));
    let packs = Packs::unready(&[("python", &[])]);
    let app = Arc::new(App::new(options, Keys::default(), packs));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving =
        tokio::spawn(async move { match Connections::new(&app).serve(listener).await {} });
    (address, serving)
}

/// Says something, and gives all that the server says until it closes the connection, and how long
/// that took.
async fn say(address: SocketAddr, text: &str) -> (String, Duration) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let begun = Instant::now();
    let mut said = Vec::new();
    // A connection that is reset has been closed as well.
    let _ = stream.read_to_end(&mut said).await;
    (String::from_utf8(said).unwrap(), begun.elapsed())
}

const HEAD: &str = "POST /v1/exec HTTP/1.1\r\nhost: localhost\r\n";

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_not_waited_for_forever() {
    let (address, _serving) = serve(&[]).await;
    let asked = format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n{HEAD}");
    for (text, answer) in [("", ""), (HEAD, ""), (&asked, "HTTP/1.1 200 OK")] {
        let (said, took) = say(address, text).await;
        assert!(said.starts_with(answer), "{text:?}: {said:?}");
        // The clock may be ahead by what a system call took it.
        let most = HEAD_TIMEOUT + Duration::from_secs(5);
        assert!(took >= HEAD_TIMEOUT && took < most, "{text:?}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_not_waited_for_forever() {
    let (address, _serving) = serve(&[]).await;
    for rest in [
        "content-length: 100\r\n\r\n{",
        "transfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
    ] {
        let (said, _) = say(address, &format!("{HEAD}{rest}")).await;
        assert!(said.starts_with("HTTP/1.1 408 "), "{said:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_is_bounded() {
    let (address, _serving) = serve(&[]).await;
    let long = format!("{HEAD}x: {}\r\n\r\n", "y".repeat(HEAD_BYTES));
    let many = format!("{HEAD}{}\r\n", "x: y\r\n".repeat(HEADERS));
    for text in [long, many] {
        let (said, _) = say(address, &text).await;
        assert!(said.starts_with("HTTP/1.1 431 "), "{said:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn connections_are_bounded() {
    let (address, _serving) = serve(&["--max-connections=2"]).await;
    let begun = Instant::now();
    let silent = [
        TcpStream::connect(address).await.unwrap(),
        TcpStream::connect(address).await.unwrap(),
    ];
    let text = "GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    // There is a place when the others have been silent for too long.
    let (said, _) = say(address, text).await;
    assert!(said.starts_with("HTTP/1.1 200 "), "{said:?}");
    assert!(begun.elapsed() >= HEAD_TIMEOUT);
    drop(silent);
}
