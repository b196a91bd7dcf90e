//! Datagrams over TCP, for clients whose network lets no UDP through: they connect, and send each behind its length (RFC 6544, RFC 4571).
//!
//! What has come whole is dealt with as if it had come by UDP, the proof that a new address owes included. A connection that brings anything else is closed.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rtc::shared::tcp_framing::frame_packet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};

use super::port::{LARGEST, Shared, Source, Way};

/// Connections at a time, of which a call has one or two; who comes beyond waits at the door.
const CONNECTIONS: usize = 4096;
/// Who connects proves itself within so long.
const FIRST: Duration = Duration::from_secs(5);
/// A connection that brings nothing for so long is closed: clients check their path every few seconds.
const SILENT: Duration = Duration::from_secs(30);
/// Datagrams that wait for a client that reads slowly; more are lost, as they would be by UDP.
const WAITING: usize = 64;
/// Where nothing can be accepted, for want of descriptors perhaps, it is tried again after so long.
const PAUSE: Duration = Duration::from_millis(100);

/// A client's connection, as far as it is written to.
#[derive(Debug, Clone)]
pub(super) struct Outlet(mpsc::Sender<Vec<u8>>);

impl Outlet {
    /// Sends a datagram, or loses it.
    pub(super) fn send(&self, datagram: &[u8]) {
        let _ = self.0.try_send(frame_packet(datagram));
    }
}

/// Takes connections in, for as long as the port is open.
pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, from)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    serve(&shared, stream, from).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "accepting a connection");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn serve(shared: &Shared, stream: TcpStream, from: SocketAddr) {
    // What waits to be joined with more comes too late.
    let _ = stream.set_nodelay(true);
    let (reader, writer) = stream.into_split();
    let (outlet, queue) = mpsc::channel(WAITING);
    let ended = tokio::select! {
        ended = hear(shared, reader, from, Outlet(outlet)) => ended,
        ended = tell(writer, queue) => ended,
    };
    tracing::debug!(%from, ?ended, "a connection that carries datagrams ends");
}

async fn hear(shared: &Shared, reader: OwnedReadHalf, from: SocketAddr, outlet: Outlet) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(LARGEST, reader);
    let mut buffer = [0; LARGEST];
    let way = Way::Tcp(outlet);
    let mut patience = FIRST;
    loop {
        let next = async {
            let length = usize::from(reader.read_u16().await?);
            let datagram = buffer.get_mut(..length).ok_or(io::ErrorKind::InvalidData)?;
            reader.read_exact(datagram).await?;
            Ok::<_, io::Error>(length)
        };
        let length = timeout(patience, next).await??;
        // A stranger, or somebody whose call is over.
        if !shared.deliver(&buffer[..length], Source::Tcp(from), &way) {
            return Ok(());
        }
        patience = SILENT;
    }
}

async fn tell(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    while let Some(frame) = queue.recv().await {
        writer.write_all(&frame).await?;
    }
    Ok(())
}
