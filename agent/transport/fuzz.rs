//! What bytes from outside come to before anything is known of who sent them, for the fuzz targets in tests/fuzz.

use std::net::{Ipv4Addr, SocketAddr};

pub use super::webrtc::{Datagrams, form};

/// One of a few addresses that a peer sends from.
pub fn address(n: u8) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 1000 + u16::from(n % 48)))
}
