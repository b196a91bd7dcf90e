//! A bad network between a peer and the server: a UDP relay that loses, delays, reorders, falls silent and moves.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What it does to a datagram, in either direction.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// Of a hundred.
    pub loss: u64,
    pub delay: Duration,
    /// Up to so much more, for each datagram by itself: they overtake each other.
    pub jitter: Duration,
}

struct Shared {
    front: UdpSocket,
    /// Towards the server; another socket after a move.
    back: Mutex<Arc<UdpSocket>>,
    server: SocketAddr,
    client: Mutex<Option<SocketAddr>>,
    weather: Mutex<Weather>,
    silent_until: Mutex<Option<Instant>>,
    random: AtomicU64,
    /// So many more datagrams of the server's handshake are lost.
    handshake: AtomicU64,
}

pub struct Relay {
    shared: Arc<Shared>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.tasks.lock().unwrap().iter().for_each(JoinHandle::abort);
    }
}

impl Shared {
    fn random(&self, below: u64) -> u64 {
        let mut x = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        if below == 0 { 0 } else { (x ^ (x >> 31)) % below }
    }

    /// `None`: lost.
    fn fate(&self) -> Option<Duration> {
        let weather = *self.weather.lock().unwrap();
        let is_silent = self.silent_until.lock().unwrap().is_some_and(|until| Instant::now() < until);
        if is_silent || self.random(100) < weather.loss {
            return None;
        }
        Some(weather.delay + Duration::from_micros(self.random(weather.jitter.as_micros() as u64)))
    }

    fn pass(self: &Arc<Self>, datagram: Vec<u8>, to_server: bool) {
        let is_handshake = !to_server && datagram.first() == Some(&22);
        if is_handshake && self.handshake.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok() {
            return;
        }
        let Some(delay) = self.fate() else { return };
        let shared = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            if to_server {
                let back = shared.back.lock().unwrap().clone();
                let _ = back.send_to(&datagram, shared.server).await;
            } else {
                let client = *shared.client.lock().unwrap();
                if let Some(client) = client {
                    let _ = shared.front.send_to(&datagram, client).await;
                }
            }
        });
    }
}

fn listen_behind(shared: Arc<Shared>, back: Arc<UdpSocket>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((n, _)) = back.recv_from(&mut buffer).await {
            shared.pass(buffer[..n].to_vec(), false);
        }
    })
}

impl Relay {
    /// Between a client and the server of this answer; and the answer that leads the client here.
    pub async fn before(answer: &str, seed: u64) -> (Self, String) {
        let line = answer.lines().find(|l| l.starts_with("a=candidate:")).unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let server: SocketAddr = format!("{}:{}", words[4], words[5]).parse().unwrap();
        let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let port = front.local_addr().unwrap().port().to_string();
        let answer = answer.replace(&format!(" {} typ host", words[5]), &format!(" {port} typ host"));
        let shared = Arc::new(Shared {
            front,
            back: Mutex::new(back.clone()),
            server,
            client: Mutex::new(None),
            weather: Mutex::default(),
            silent_until: Mutex::new(None),
            random: AtomicU64::new(seed),
            handshake: AtomicU64::new(0),
        });
        let forward = shared.clone();
        let forward = tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((n, from)) = forward.front.recv_from(&mut buffer).await {
                *forward.client.lock().unwrap() = Some(from);
                forward.pass(buffer[..n].to_vec(), true);
            }
        });
        let tasks = Mutex::new(vec![forward, listen_behind(shared.clone(), back)]);
        (Self { shared, tasks }, answer)
    }

    pub fn weather(&self, weather: Weather) {
        *self.shared.weather.lock().unwrap() = weather;
    }

    /// Loses so many datagrams of the server's handshake.
    pub fn lose_handshake(&self, count: u64) {
        self.shared.handshake.store(count, Relaxed);
    }

    /// Nothing passes for so long.
    pub fn outage(&self, length: Duration) {
        *self.shared.silent_until.lock().unwrap() = Some(Instant::now() + length);
    }

    /// From now on the client seems to be elsewhere.
    pub async fn moves(&self) {
        let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        *self.shared.back.lock().unwrap() = back.clone();
        self.tasks.lock().unwrap().push(listen_behind(self.shared.clone(), back));
    }
}
