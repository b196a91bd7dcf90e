//! Datagrams on the one UDP port: STUN checks with and without the password, and anything else, from several addresses.
#![no_main]

use hearken::transport::fuzz::{Datagrams, address};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut port = Datagrams::new("name", "password").expect("a provider of hashes is built in");
    let mut rest = data;
    // Each: from where, how, and how long.
    while let [from, how, length, after @ ..] = rest {
        let (bytes, next) = after.split_at(after.len().min(usize::from(*length)));
        let from = address(*from);
        let check = if how % 2 == 1 { port.check(bytes, "name", "password") } else { None };
        let is_check = check.is_some();
        let delivered = port.deliver(check.as_deref().unwrap_or(bytes), from);
        if is_check && let Some((alias, _)) = delivered {
            assert!(alias.ip().is_loopback() && alias.port() > 0, "a name for it, not the address");
        }
        rest = next;
    }
});
