//! Calls over bad networks, measured: `scripts/bench network`. Each scenario speaks a recording in real time and counts what is lost, made up and late;
//! while it is spoken, captions come back with the time at which they were told.
//!
//!   HEARKEN_NETWORK_OUT      a folder for what was heard, one wav a scenario
//!   HEARKEN_NETWORK_KERNEL   so many of a hundred packets are lost in the kernel, UDP and TCP alike; one scenario, in a network namespace of its own

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use hearken::engine::Caption;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::Instant;
use webrtc::data_channel::{DataChannel, DataChannelEvent};

use crate::harness::{config, serve, soon, speech, wav};
use crate::phone::{Phone, http};
use crate::relay::{Relay, Weather};
use crate::webrtc::{CALLS, SDP, counter, envelope, likeness};

/// What is done to a call.
struct Scenario {
    name: &'static str,
    weather: Weather,
    /// In the middle of the recording.
    outage: Duration,
    moves: bool,
}

fn scenarios() -> Vec<Scenario> {
    let ms = Duration::from_millis;
    let weather = |loss, delay, jitter| Weather { loss, delay: ms(delay), jitter: ms(jitter) };
    let plain = |name, weather| Scenario { name, weather, outage: Duration::ZERO, moves: false };
    vec![
        plain("clean", weather(0, 0, 0)),
        plain("loss 5 %", weather(5, 10, 0)),
        plain("loss 10 %", weather(10, 10, 0)),
        plain("100 ± 60 ms, reordered", weather(0, 40, 120)),
        plain("loss 5 %, 100 ± 60 ms", weather(5, 40, 120)),
        plain("loss 10 %, 100 ± 60 ms", weather(10, 40, 120)),
        Scenario { outage: ms(2000), ..plain("outage of 2 s", weather(0, 10, 0)) },
        Scenario { moves: true, ..plain("another address", weather(0, 10, 0)) },
    ]
}

fn at(times: &[f64], share: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(((sorted.len().max(1) - 1) as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

/// The time that a caption of ours carries, and how long ago that was, ms.
fn age(event: &Value, born: Instant) -> Option<f64> {
    let told: f64 = event["delta"].as_str()?.trim().parse().ok()?;
    Some(born.elapsed().as_secs_f64() * 1000.0 - told)
}

/// What came back, and when.
struct Told {
    by_channel: Vec<f64>,
    by_http: Vec<f64>,
}

async fn read_channel(channel: std::sync::Arc<dyn DataChannel>, born: Instant) -> Vec<f64> {
    let mut ages = Vec::new();
    while let Some(event) = channel.poll().await {
        if let DataChannelEvent::OnMessage(message) = event {
            let event: Value = serde_json::from_slice(&message.data).unwrap();
            ages.extend(age(&event, born));
            if event["type"] == "input_audio_buffer.committed" {
                break;
            }
        }
    }
    ages
}

/// Server-sent events, which go by TCP.
async fn read_http(server: SocketAddr, location: String, born: Instant) -> Vec<f64> {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let request = format!("GET {location}/events HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut lines, mut ages) = (BufReader::new(stream).lines(), Vec::new());
    while let Ok(Some(line)) = lines.next_line().await {
        let Some(event) = line.strip_prefix("data: ") else { continue };
        let event: Value = serde_json::from_str(event).unwrap();
        ages.extend(age(&event, born));
        if event["type"] == "input_audio_buffer.committed" {
            break;
        }
    }
    ages
}

/// Loses datagrams and segments alike in the kernel, for which the machine's own network namespace is no place.
fn lose_in_kernel(percent: &str) {
    let rules = format!(
        "table inet loss {{ chain input {{ type filter hook input priority 0; iif lo meta l4proto {{ tcp, udp }} numgen random mod 100 < {percent} drop; }}; }}"
    );
    assert!(Command::new("nft").arg(rules).status().unwrap().success());
}

async fn play(scenario: &Scenario, seed: u64, out: Option<PathBuf>) {
    let clip = speech("jfk.wav");
    let mut server = serve(config()).await;
    let mut phone = Phone::new(111).await;
    let offer = phone.offer().await;
    let answer = http(server.address, "POST", CALLS, &[SDP], offer.as_bytes()).await;
    let location = answer.header("location").unwrap().to_owned();
    let (relay, answer) = Relay::before(&answer.body, seed).await;
    phone.accept(&answer).await;
    phone.expect("session.created").await;
    // One turn from the first word to the commit.
    let turns = json!({"type": "server_vad", "silence_duration_ms": 20000, "create_response": false});
    phone.send(json!({"type": "session.update", "session": {"audio": {"input": {"turn_detection": turns}}}})).await;
    phone.expect("session.updated").await;
    relay.weather(scenario.weather);
    if let Ok(percent) = std::env::var("HEARKEN_NETWORK_KERNEL") {
        lose_in_kernel(&percent);
    }
    let born = Instant::now();
    let by_channel = tokio::spawn(read_channel(phone.channel.clone(), born));
    let by_http = tokio::spawn(read_http(server.address, location, born));
    // Two captions at once every 400 ms, as words come, until the end.
    let (end, mut ended) = oneshot::channel::<()>();
    let ear = tokio::spawn(async move {
        let ear = server.opened().await;
        let mut pace = tokio::time::interval(Duration::from_millis(400));
        loop {
            tokio::select! {
                _ = &mut ended => return (server, ear.fed.samples.lock().unwrap().clone()),
                _ = pace.tick() => {}
            }
            for _ in 0..2 {
                let committed = format!(" {:.1}", born.elapsed().as_secs_f64() * 1000.0);
                let caption = Caption { committed, tentative: String::new(), is_last: false };
                let _ = ear.captions.send(caption).await;
            }
        }
    });
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    for (i, frame) in clip.chunks_exact(320).enumerate() {
        if i == 250 {
            relay.outage(scenario.outage);
            if scenario.moves {
                relay.moves().await;
            }
        }
        pace.tick().await;
        let packet = phone.encode(frame);
        phone.packet(packet, 960).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    phone.send(json!({"type": "input_audio_buffer.commit"})).await;
    let told = Told {
        by_channel: soon("captions", by_channel).await.unwrap(),
        by_http: soon("captions by HTTP", by_http).await.unwrap(),
    };
    end.send(()).unwrap();
    let (server, heard) = soon("what was heard", ear).await.unwrap();
    let share = async |name: &str| counter(&server, name).await as f64 / clip.len() as f64 * 100.0;
    let packets = counter(&server, "rtp_packets_total").await.max(1);
    let envelopes = (envelope(&clip), envelope(&heard));
    println!(
        "{:<24} {:>7.2} % {:>7.2} % {:>5} {:>5.1} ms {:>9.4}   {:>3} {:>5.0} {:>5.0} {:>5.0} ms   {:>3} {:>5.0} {:>5.0} {:>5.0} ms",
        scenario.name,
        share("rtp_concealed_samples_total").await,
        share("rtp_recovered_samples_total").await,
        counter(&server, "rtp_late_total").await,
        counter(&server, "rtp_waited_microseconds_total").await as f64 / 1000.0 / packets as f64,
        likeness(&envelopes.0, &envelopes.1).max(likeness(&envelopes.1, &envelopes.0)),
        told.by_channel.len(),
        at(&told.by_channel, 0.5),
        at(&told.by_channel, 0.95),
        at(&told.by_channel, 1.0),
        told.by_http.len(),
        at(&told.by_http, 0.5),
        at(&told.by_http, 0.95),
        at(&told.by_http, 1.0),
    );
    if let Some(folder) = out {
        std::fs::write(folder.join(format!("{}.wav", scenario.name.replace([' ', '%', ','], "_"))), wav(&heard))
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement in real time: scripts/bench network"]
async fn network() {
    println!("sound: made up, recovered from copies, packets too late, mean wait in the buffer, likeness of envelopes");
    println!(
        "text: captions, and how old at p50, p95 and most, by the data channel and by HTTP (which the relay does not harm)"
    );
    let out = std::env::var_os("HEARKEN_NETWORK_OUT").map(PathBuf::from);
    let mut all = scenarios();
    if std::env::var_os("HEARKEN_NETWORK_KERNEL").is_some() {
        all.truncate(1);
    }
    for (seed, scenario) in all.iter().enumerate() {
        play(scenario, seed as u64, out.clone()).await;
    }
}
