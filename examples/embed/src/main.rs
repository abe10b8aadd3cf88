//! Runs Python in a microVM of its own.

use std::time::Duration;

use ember_core::{ByteSize, Code, Command, Image, Sandbox};

#[tokio::main]
async fn main() -> Result<(), ember_core::Error> {
    let sandbox = Sandbox::builder(Image::pack("python"))
        .vcpus(2)
        .memory(ByteSize::mib(256))
        .boot()
        .await?;

    let out = sandbox.run(Code::python("print(6 * 7)")).await?;
    assert_eq!(out.stdout, "42\n");

    // Code that fails, or takes too long, is an outcome. An error is something else: the guest
    // died, or could not be asked.
    let endless = Code::python("while True: pass").timeout(Duration::from_secs(1));
    let out = sandbox.run(endless).await?;
    assert!(out.outcome.timed_out());

    // Programs run as an unprivileged user. Commands are root's, in a Linux of their own.
    let out = sandbox.exec(Command::new("uname").arg("-sr")).await?;
    print!("{}", out.stdout);

    sandbox.close().await;
    Ok(())
}
