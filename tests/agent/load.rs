//! Many calls at once, the engine replaced by a sink: `scripts/bench load`. The senders run in a process of their own, so that the server's processor time
//! is its own; a server of others can be measured by the same senders.
//!
//!   HEARKEN_LOAD            calls, 200 unless said otherwise
//!   HEARKEN_LOAD_DETECTOR   `neural`: with the voice detector that is served by default, beside the cheap one

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::harness::{config, serve, soon, speech};
use crate::phone::Phone;
use crate::webrtc::{CALLS, counter};

/// How long is measured, once all calls are there.
const WINDOW: Duration = Duration::from_secs(20);

fn calls() -> usize {
    std::env::var("HEARKEN_LOAD").ok().and_then(|n| n.parse().ok()).unwrap_or(200)
}

/// Processor time of this process so far, seconds, and its memory, bytes.
fn spent() -> (f64, u64) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // 100 ticks a second on Linux, pages of 4 KiB on x86.
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    (ticks / 100.0, fields[21].parse::<u64>().unwrap() * 4096)
}

/// Datagrams that found the buffer of their socket full, anywhere on this machine.
fn dropped_by_the_system() -> u64 {
    let table = std::fs::read_to_string("/proc/net/snmp").unwrap();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("Udp: ")).collect();
    let (names, values) = (rows[0], rows[1]);
    let at = names.split(' ').position(|name| name == "RcvbufErrors").unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: scripts/bench load"]
async fn load() {
    let mut config = config();
    config.server.max_sessions = calls();
    if std::env::var("HEARKEN_LOAD_DETECTOR").is_ok_and(|kind| kind == "neural") {
        config.voice.detector = hearken::config::Detector::Neural;
    }
    let (_, empty) = spent();
    let mut server = serve(config).await;
    // The sink keeps nothing.
    let (mut asked, mut opened) = (server.asked, server.opened);
    server.asked = tokio::sync::mpsc::unbounded_channel().1;
    server.opened = tokio::sync::mpsc::unbounded_channel().1;
    tokio::spawn(async move { while asked.recv().await.is_some() {} });
    tokio::spawn(async move { while opened.recv().await.is_some() {} });
    let mut senders = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", "load::alone_senders"])
        .env("HEARKEN_LOAD_SERVER", server.address.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let all_there = async {
        while counter(&server, "calls_total").await < calls() as u64 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    soon("all calls", all_there).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let names =
        ["rtp_packets_total", "rtp_concealed_samples_total", "audio_samples_total", "audio_samples_dropped_total"];
    let mut before = Vec::new();
    for name in names {
        before.push(counter(&server, name).await);
    }
    let (began, (cpu, _), dropped) = (Instant::now(), spent(), dropped_by_the_system());
    tokio::time::sleep(WINDOW).await;
    let (seconds, (cpu_after, memory)) = (began.elapsed().as_secs_f64(), spent());
    let mut grown = Vec::new();
    for (name, before) in names.iter().zip(before) {
        grown.push((counter(&server, name).await - before) as f64);
    }
    let due = calls() as f64 * 50.0 * seconds;
    let core = (cpu_after - cpu) / seconds * 100.0;
    println!(
        "{} calls: {core:.0} % of a core, {:.2} % a call; {:.2} % of the packets came, {:.3} % of the sound made up, {:.0} samples dropped; {} datagrams of this machine found no room; {:.2} MB a call",
        calls(),
        core / calls() as f64,
        grown[0] / due * 100.0,
        grown[1] / grown[2].max(1.0) * 100.0,
        grown[3],
        dropped_by_the_system() - dropped,
        (memory - empty) as f64 / 1e6 / calls() as f64,
    );
    let _ = senders.kill();
    let _ = senders.wait();
}

/// Calls that speak in real time, until they are killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by `load`"]
async fn alone_senders() {
    let server: SocketAddr = std::env::var("HEARKEN_LOAD_SERVER").unwrap().parse().unwrap();
    let mut first = Phone::new(111).await;
    let clip = speech("jfk.wav");
    let packets: Arc<Vec<Vec<u8>>> = Arc::new(clip.chunks_exact(320).map(|frame| first.encode(frame)).collect());
    let mut tasks = Vec::new();
    for n in 0..calls() {
        let mut phone = Phone::new(111).await;
        phone.call(server, CALLS).await;
        let packets = packets.clone();
        tasks.push(tokio::spawn(async move {
            let start = Instant::now() + Duration::from_millis(n as u64 % 20);
            let mut pace = interval_at(start, Duration::from_millis(20));
            pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for packet in packets.iter().cycle() {
                pace.tick().await;
                phone.packet(packet.clone(), 960).await;
            }
        }));
    }
    std::future::pending::<()>().await;
}
