//! The host's side of a guest's network.
//!
//! A [`Tap`] is an interface of the host whose other end is a descriptor: what the host sends to
//! the interface is read from the descriptor, and what is written to it arrives at the interface.
//! A VM's network card takes the descriptor.
//!
//! ```no_run
//! use std::net::Ipv4Addr;
//!
//! use ember_net::{MacAddress, Tap};
//!
//! let tap = Tap::create(None)?;
//! tap.set_address(Ipv4Addr::new(172, 30, 0, 1), 30)?;
//! tap.bring_up()?;
//! println!("the host reaches the guest through {}", tap.name());
//! let mac = MacAddress::random_local()?;
//! let descriptor = tap.into_fd();
//! # drop((mac, descriptor));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(unsafe_code)]

mod ioctl;
mod mac;
mod tap;

pub use mac::MacAddress;
pub use tap::{HEADER_SIZE, Tap, TapError};

#[cfg(test)]
mod tests;
