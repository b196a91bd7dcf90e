//! One UDP port for all sessions, and where it is wanted one TCP port.
//!
//! The crate gives each peer connection sockets of its own, which in a container or behind a firewall means a range of open ports. But its `Runtime`
//! may hand out any socket it likes: ours hands each connection a *line*, a socket in name only, and all lines share the real sockets of this port.
//! Whose a datagram is follows from the first one that an address sends, a STUN binding request, which carries the name that our answer gave to the
//! session (RFC 8445, 7.2.2) and proves the password that goes with it; after that, from the address. An address that has proven nothing is not answered.
//!
//! A line also hides where its peer is. The connection sees names for addresses (127.0.0.1:1, :2, …) and this table knows what they stand for; when a
//! peer moves to another network, its next check comes from elsewhere, with the same proof, and the name is simply pointed there. The crate itself never
//! leaves the pair of addresses it has once chosen.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rtc::shared::ifaces::ifaces;
use rtc::stun::attributes::{ATTR_USE_CANDIDATE, ATTR_USERNAME, AttrType};
use rtc::stun::integrity::MessageIntegrity;
use rtc::stun::message::{BINDING_REQUEST, Message, Setter as _, is_stun_message};
use rtc::stun::textattrs::TextAttribute;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use webrtc::peer_connection::crypto::{RTCCryptoProvider, default_provider};
use webrtc::runtime::{self as rt, AsyncUdpSocket, RecvMeta, Runtime, TokioRuntime, Transmit};

use super::flight::Flight;
use super::tcp::{self, Outlet};
use crate::protocol::sdp::Candidate;

/// Datagrams that may wait for one session; more are dropped, as a full socket drops them.
const WAITING: usize = 512;
/// Addresses that one peer may check from: its networks, times two families.
const ADDRESSES: usize = 32;
/// Bytes that the system may hold for all sessions until we read: a hundred calls send a packet every 0.2 ms, and a machine that is busy elsewhere for
/// 20 ms would lose half of them with the usual 208 KiB, of which a small packet takes 768 bytes.
const BUFFER: usize = 4 << 20;
/// An address that has been silent for so long may be taken over by who proves to be there now.
const SILENT: Duration = Duration::from_secs(1);
/// An address that has been silent for so long makes room for another one, where a peer has many.
const LEFT: Duration = Duration::from_secs(30);
/// Larger than any datagram of a path with 1500-byte packets.
pub(super) const LARGEST: usize = 2048;

/// The sockets of this port, and whose the datagrams are.
pub(crate) struct Port {
    shared: Arc<Shared>,
    readers: Vec<JoinHandle<()>>,
}

/// Where a datagram comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Udp(SocketAddr),
    Tcp(SocketAddr),
}

/// What reaches a peer: one of our sockets and its address, or its own connection.
#[derive(Debug, Clone)]
pub(super) enum Way {
    Udp(usize, SocketAddr),
    Tcp(Outlet),
}

pub(super) struct Shared {
    sockets: Vec<Socket>,
    crypto: Arc<dyn RTCCryptoProvider>,
    /// What stands in our answers, best first.
    candidates: Vec<Candidate>,
    routes: Mutex<Routes>,
}

struct Socket {
    socket: UdpSocket,
    address: SocketAddr,
}

#[derive(Default)]
struct Routes {
    /// By the name in our answer (ice-ufrag): the password and the session's line.
    names: HashMap<String, (String, Arc<Line>)>,
    /// By where datagrams come from.
    sources: HashMap<Source, Route>,
}

struct Route {
    line: Arc<Line>,
    alias: SocketAddr,
    heard: Instant,
}

/// One session's end.
struct Line {
    inbound: mpsc::Sender<(SocketAddr, Vec<u8>)>,
    outbound: Mutex<Outbound>,
}

#[derive(Default)]
struct Outbound {
    /// What aliases stand for. An alias's port is its index here, counted from 1.
    aliases: Vec<(Source, Way)>,
    /// Where the connection sends its media and text.
    chosen: Option<SocketAddr>,
    flight: Flight,
}

/// Nothing that is done under these locks can stop half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Port {
    /// Binds the port on `listen`, or on all interfaces where that is unspecified; `tcp` is for clients whose network lets no UDP through. `external` are
    /// addresses under which clients reach this machine through a translator that keeps the port.
    ///
    /// # Errors
    /// When no socket can be bound.
    pub(crate) fn open(
        listen: SocketAddr,
        tcp: Option<std::net::TcpListener>,
        external: &[IpAddr],
    ) -> io::Result<Self> {
        let mut port = listen.port();
        let mut sockets = Vec::new();
        for ip in interfaces(listen.ip()) {
            let socket = std::net::UdpSocket::bind((ip, port))?;
            socket.set_nonblocking(true)?;
            // What the system does not grant is not needed to begin with.
            let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(BUFFER);
            let address = socket.local_addr()?;
            // Port 0 lets the system choose once, for all interfaces.
            port = address.port();
            sockets.push(Socket { socket: UdpSocket::from_std(socket)?, address });
        }
        let external_at = |port| external.iter().map(move |ip| SocketAddr::new(*ip, port));
        let udp = external_at(port).chain(sockets.iter().map(|s| s.address));
        let candidate = |is_tcp| move |at: SocketAddr| Candidate { ip: at.ip().to_string(), port: at.port(), is_tcp };
        let mut candidates: Vec<Candidate> = udp.map(candidate(false)).collect();
        let listener = tcp.map(|listener| {
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            let here = interfaces(address.ip()).into_iter().map(|ip| SocketAddr::new(ip, address.port()));
            candidates.extend(external_at(address.port()).chain(here).map(candidate(true)));
            TcpListener::from_std(listener)
        });
        let listener = listener.transpose()?;
        let crypto = default_provider().map_err(|e| io::Error::other(e.to_string()))?;
        let shared = Arc::new(Shared { sockets, crypto, candidates, routes: Mutex::default() });
        let read = |i| tokio::spawn(read(shared.clone(), i));
        let mut readers: Vec<_> = (0..shared.sockets.len()).map(read).collect();
        readers.extend(listener.map(|listener| tokio::spawn(tcp::accept(shared.clone(), listener))));
        Ok(Self { shared, readers })
    }

    /// The addresses that go into an answer, best first.
    pub(crate) fn candidates(&self) -> &[Candidate] {
        &self.shared.candidates
    }

    /// A line for one more session. Give its [`Lease`] the names of each answer.
    pub(crate) fn line(&self) -> (Lease, Arc<dyn Runtime>) {
        let (inbound, queue) = mpsc::channel(WAITING);
        let line = Arc::new(Line { inbound, outbound: Mutex::default() });
        let repeater = tokio::spawn(repeat(self.shared.clone(), line.clone()));
        let lease = Lease { shared: self.shared.clone(), line: line.clone(), repeater };
        let view = View { shared: self.shared.clone(), line, queue: Mutex::new(queue), local: Mutex::default() };
        (lease, Arc::new(LineRuntime { view: Arc::new(view), tokio: TokioRuntime }))
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.readers.iter().for_each(JoinHandle::abort);
    }
}

/// A session's right to the port; dropped, its names and addresses are forgotten.
pub(crate) struct Lease {
    shared: Arc<Shared>,
    line: Arc<Line>,
    repeater: JoinHandle<()>,
}

impl Lease {
    /// From now on, who proves this name and password belongs to the session.
    pub(crate) fn name(&self, ufrag: &str, password: &str) {
        lock(&self.shared.routes).names.insert(ufrag.into(), (password.into(), self.line.clone()));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.repeater.abort();
        let mut routes = lock(&self.shared.routes);
        routes.names.retain(|_, (_, line)| !Arc::ptr_eq(line, &self.line));
        routes.sources.retain(|_, route| !Arc::ptr_eq(&route.line, &self.line));
    }
}

/// A port without sockets and one line of it, which takes in datagrams from anywhere. For tests/fuzz.
#[doc(hidden)]
pub struct Datagrams {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<(SocketAddr, Vec<u8>)>,
}

impl Datagrams {
    /// Its line is called `name` and has this password.
    pub fn new(name: &str, password: &str) -> Option<Self> {
        let (inbound, queue) = mpsc::channel(WAITING);
        let line = Arc::new(Line { inbound, outbound: Mutex::default() });
        let names = HashMap::from([(name.to_owned(), (password.to_owned(), line))]);
        let routes = Mutex::new(Routes { names, ..Routes::default() });
        let shared = Shared { sockets: Vec::new(), crypto: default_provider().ok()?, candidates: Vec::new(), routes };
        Some(Self { shared: Arc::new(shared), queue })
    }

    /// What the line hears of a datagram.
    pub fn deliver(&mut self, datagram: &[u8], from: SocketAddr) -> Option<(SocketAddr, Vec<u8>)> {
        self.shared.deliver(datagram, Source::Udp(from), &Way::Udp(0, from));
        self.queue.try_recv().ok()
    }

    /// As a peer would that knows the password: a check with these attributes behind the name.
    pub fn check(&self, attributes: &[u8], name: &str, password: &str) -> Option<Vec<u8>> {
        let mut message = Message::new();
        message.typ = BINDING_REQUEST;
        message.write_header();
        message.add(ATTR_USERNAME, name.as_bytes());
        let mut rest = attributes;
        while let [kind, length, after @ ..] = rest {
            let (value, next) = after.split_at(after.len().min(usize::from(*length)));
            message.add(AttrType(u16::from(*kind)), value);
            rest = next;
        }
        let crypto = self.shared.crypto.crypto();
        let integrity = MessageIntegrity::new_short_term_integrity_with_provider(password.to_owned(), crypto);
        integrity.add_to(&mut message).ok()?;
        Some(message.raw)
    }
}

/// Where to bind: one address, or each interface's, loopback last, because some clients try the first alone.
fn interfaces(ip: IpAddr) -> Vec<IpAddr> {
    if !ip.is_unspecified() {
        return vec![ip];
    }
    let link_local = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let found = ifaces().unwrap_or_default();
    let mut all: Vec<IpAddr> = found.iter().filter_map(|i| i.addr).map(|a| a.ip()).collect();
    // `[::]` is both families, as it is for the system.
    all.retain(|found| (ip.is_ipv6() || found.is_ipv4()) && !found.is_unspecified() && !link_local(found));
    all.sort_by_key(|ip| (ip.is_loopback(), ip.is_ipv6(), *ip));
    all.dedup();
    if all.is_empty() { vec![Ipv4Addr::LOCALHOST.into()] } else { all }
}

/// Repeats a line's part of the handshake.
async fn repeat(shared: Arc<Shared>, line: Arc<Line>) {
    loop {
        let Some(pause) = lock(&line.outbound).flight.pause() else { return };
        tokio::time::sleep(pause).await;
        let mut outbound = lock(&line.outbound);
        let Outbound { aliases, chosen: Some(chosen), flight } = &mut *outbound else { continue };
        let Some((_, way)) = aliases.get(usize::from(chosen.port()).wrapping_sub(1)) else { continue };
        flight.again().iter().for_each(|datagram| shared.send(datagram, way));
    }
}

/// Hands on what one socket receives, for as long as the port is open.
async fn read(shared: Arc<Shared>, index: usize) {
    let mut buffer = [0; LARGEST];
    loop {
        match shared.sockets[index].socket.recv_from(&mut buffer).await {
            Ok((n, from)) => {
                shared.deliver(&buffer[..n], Source::Udp(from), &Way::Udp(index, from));
            }
            // An earlier datagram found its port closed, which says nothing about the next.
            Err(error) => {
                tracing::debug!(%error, "receiving a datagram");
                tokio::task::yield_now().await;
            }
        }
    }
}

impl Shared {
    /// Hands a datagram to its session; whether it has one.
    pub(super) fn deliver(&self, datagram: &[u8], from: Source, way: &Way) -> bool {
        let now = Instant::now();
        let mut routes = lock(&self.routes);
        let routes = &mut *routes;
        let check = is_stun_message(datagram).then(|| self.check(&routes.names, datagram)).flatten();
        if let Some((line, is_nomination)) = check {
            let known = routes.sources.get(&from);
            let is_another_s = known.is_some_and(|route| !Arc::ptr_eq(&route.line, &line));
            // Who proves to be there now has the address, unless somebody else is using it: a sender's address can be forged.
            if is_another_s && known.is_some_and(|route| now - route.heard < SILENT) {
                return false;
            }
            let alias = known.filter(|_| !is_another_s).map(|route| route.alias);
            let sources = &mut routes.sources;
            let Some(alias) = line.admit((from, way), alias, is_nomination, sources, now) else { return false };
            sources.insert(from, Route { line, alias, heard: now });
        }
        let Some(route) = routes.sources.get_mut(&from) else { return false };
        route.heard = now;
        lock(&route.line.outbound).flight.received(datagram);
        // Full: dropped, as a socket would.
        let _ = route.line.inbound.try_send((route.alias, datagram.to_vec()));
        true
    }

    /// A datagram that finds no room is lost, and what it carried is sent again by those above that care.
    fn send(&self, datagram: &[u8], way: &Way) {
        match way {
            Way::Udp(socket, address) => drop(self.sockets[*socket].socket.try_send_to(datagram, *address)),
            Way::Tcp(outlet) => outlet.send(datagram),
        }
    }

    /// Whose check this is, and whether it nominates the path it came by; `None` for anything but a check that is proven.
    fn check(&self, names: &HashMap<String, (String, Arc<Line>)>, datagram: &[u8]) -> Option<(Arc<Line>, bool)> {
        let mut message = Message { raw: datagram.to_vec(), ..Message::default() };
        message.decode().ok()?;
        if message.typ != BINDING_REQUEST {
            return None;
        }
        let username = TextAttribute::get_from_as(&message, ATTR_USERNAME).ok()?;
        let (password, line) = names.get(username.text.split(':').next()?)?;
        MessageIntegrity::check(&mut message, password.as_bytes(), self.crypto.crypto()).ok()?;
        Some((line.clone(), message.contains(ATTR_USE_CANDIDATE)))
    }
}

impl Line {
    /// The alias of a source that has proven itself: the one in use, if the peer has left that for this source; otherwise the one that it has, or a
    /// new one.
    fn admit(
        &self,
        (from, way): (Source, &Way),
        alias: Option<SocketAddr>,
        is_nomination: bool,
        routes: &mut HashMap<Source, Route>,
        now: Instant,
    ) -> Option<SocketAddr> {
        let mut outbound = lock(&self.outbound);
        if is_nomination
            && let Some(chosen) = outbound.chosen
            && alias != Some(chosen)
        {
            let slot = &mut outbound.aliases[usize::from(chosen.port()) - 1];
            let has_left = routes.get(&slot.0).is_none_or(|route| now - route.heard >= SILENT);
            if has_left {
                tracing::info!("a peer has moved to another address");
                routes.remove(&slot.0);
                *slot = (from, way.clone());
                return Some(chosen);
            }
        }
        if let Some(alias) = alias {
            // Perhaps by another connection.
            outbound.aliases[usize::from(alias.port()) - 1].1 = way.clone();
            return Some(alias);
        }
        if outbound.aliases.len() == ADDRESSES {
            // One that the peer has left, but not the one in use.
            let chosen = outbound.chosen.map(|chosen| usize::from(chosen.port()) - 1);
            let is_own =
                |route: &Route, n: usize| std::ptr::eq(&*route.line, self) && usize::from(route.alias.port()) == n + 1;
            let route = |n: usize| routes.get(&outbound.aliases[n].0).filter(|route| is_own(route, n));
            let left = |n: &usize| Some(*n) != chosen && route(*n).is_none_or(|route| now - route.heard >= LEFT);
            let n = (0..ADDRESSES).find(left)?;
            if route(n).is_some() {
                routes.remove(&outbound.aliases[n].0);
            }
            outbound.aliases[n] = (from, way.clone());
            return Some(SocketAddr::from((Ipv4Addr::LOCALHOST, n as u16 + 1)));
        }
        outbound.aliases.push((from, way.clone()));
        Some(SocketAddr::from((Ipv4Addr::LOCALHOST, outbound.aliases.len() as u16)))
    }
}

/// The socket that a connection sees.
struct View {
    shared: Arc<Shared>,
    line: Arc<Line>,
    queue: Mutex<mpsc::Receiver<(SocketAddr, Vec<u8>)>>,
    local: Mutex<Option<SocketAddr>>,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

impl AsyncUdpSocket for View {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        lock(&self.local).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn poll_send(&self, _: &mut Context<'_>, transmit: &Transmit<'_>) -> Poll<io::Result<usize>> {
        let sent = Poll::Ready(Ok(transmit.contents.len()));
        let mut outbound = lock(&self.line.outbound);
        let index = usize::from(transmit.destination.port()).wrapping_sub(1);
        let Some((_, way)) = outbound.aliases.get(index).cloned() else { return sent };
        if !is_stun_message(transmit.contents) {
            outbound.chosen = Some(transmit.destination);
            outbound.flight.sent(transmit.contents);
        }
        drop(outbound);
        self.shared.send(transmit.contents, &way);
        sent
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        match lock(&self.queue).poll_recv(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            Poll::Ready(Some((from, datagram))) => {
                let n = datagram.len().min(buffers[0].len());
                buffers[0][..n].copy_from_slice(&datagram[..n]);
                meta[0] = RecvMeta::default();
                (meta[0].addr, meta[0].len, meta[0].stride) = (from, n, n.max(1));
                Poll::Ready(Ok(1))
            }
        }
    }
}

/// Tokio, but for the sockets.
#[derive(Debug)]
struct LineRuntime {
    view: Arc<View>,
    tokio: TokioRuntime,
}

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl Runtime for LineRuntime {
    fn spawn(&self, future: Boxed<'static, ()>) -> Box<dyn rt::JoinHandle> {
        self.tokio.spawn(future)
    }

    /// The line, whatever was bound; that socket is closed. Its address lives on as the name of our end.
    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        *lock(&self.view.local) = Some(socket.local_addr()?);
        Ok(self.view.clone())
    }

    fn wrap_tcp_listener(&self, listener: std::net::TcpListener) -> io::Result<Arc<dyn rt::AsyncTcpListener>> {
        self.tokio.wrap_tcp_listener(listener)
    }

    fn connect_tcp<'a>(&'a self, remote: SocketAddr) -> Boxed<'a, io::Result<Arc<dyn rt::AsyncTcpStream>>> {
        self.tokio.connect_tcp(remote)
    }

    fn resolve_host<'a>(&'a self, host: &'a str) -> Boxed<'a, io::Result<Vec<SocketAddr>>> {
        self.tokio.resolve_host(host)
    }

    fn sleep(&self, duration: Duration) -> Boxed<'static, ()> {
        self.tokio.sleep(duration)
    }

    fn interval(&self, period: Duration) -> Box<dyn rt::AsyncInterval> {
        self.tokio.interval(period)
    }

    fn block_on(&self, future: Pin<Box<dyn Future<Output = ()> + '_>>) {
        self.tokio.block_on(future);
    }

    fn name(&self) -> &'static str {
        "line"
    }
}
