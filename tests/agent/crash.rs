//! The server is killed in the middle of live sessions, again and again: what clients were told is there when it is back.
//!
//! The server is this very test program in another process, so that it can be killed for real; its engine says words without end, so that there is
//! always something in the middle of being told. `HEARKEN_CRASHES` says how often (`scripts/bench crash`: 50 times).

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use hearken::engine::{Caption, Engine, EngineError, Event, Feed, Listen, Listening, Request, SessionId, Turn};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{done, noise, soon, syllables};
use crate::journal::{kept, number};

/// Tells the other process where its journal is, and so that it is to serve.
const FOLDER: &str = "HEARKEN_CRASH_FOLDER";

/// Speaks word after word, and hears a word in each piece of sound.
struct Talker;

#[derive(Debug)]
struct Echo(tokio::sync::mpsc::Sender<Caption>);

impl Feed for Echo {
    fn push(&self, samples: &[f32]) -> usize {
        let committed = format!("heard {} ", samples.len());
        let _ = self.0.try_send(Caption { committed, ..Caption::default() });
        0
    }

    fn finish(&self) {
        let _ = self.0.try_send(Caption { is_last: true, ..Caption::default() });
    }
}

impl Engine for Talker {
    fn model(&self) -> &str {
        "talker"
    }

    fn respond(&self, _: Request) -> Result<Turn, EngineError> {
        let (turn, events, _) = Turn::channel(64);
        tokio::spawn(async move {
            for word in 0..200 {
                let text = format!("word {word} ");
                let event = if word < 40 { Event::Reasoning(text) } else { Event::Reply(text) };
                if events.send(event).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let _ = events.send(done()).await;
        });
        Ok(turn)
    }

    fn listen(&self, _: Listen) -> Result<Listening, EngineError> {
        let (tx, rx) = tokio::sync::mpsc::channel(256);
        let (listening, captions) = Listening::channel(Box::new(Echo(tx)), 256);
        tokio::spawn(async move {
            let mut rx = rx;
            while let Some(caption) = rx.recv().await {
                if captions.send(caption).await.is_err() {
                    return;
                }
            }
        });
        Ok(listening)
    }

    fn close(&self, _: SessionId) {}
}

/// Not a test by itself: the process that is killed.
#[test]
fn the_server_that_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("\nserving {}", listener.local_addr().unwrap());
        let config = Arc::new(kept(Path::new(&folder)));
        hearken::transport::serve(listener, config, Arc::new(Talker), std::future::pending()).await.unwrap();
    });
}

struct Victim {
    process: Child,
    address: String,
}

impl Victim {
    fn start(folder: &Path) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::the_server_that_is_killed", "--nocapture"])
            .env(FOLDER, folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = lines.find_map(|line| line.unwrap().strip_prefix("serving ").map(str::to_owned)).unwrap();
        Self { process, address }
    }

    /// SIGKILL, which no process can answer.
    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// One client through all the crashes, and all that it was ever told.
#[derive(Default)]
struct Witness {
    token: String,
    told: BTreeMap<u64, Value>,
}

impl Witness {
    /// Comes (back), checks what was missed, and talks until the server dies.
    async fn talk(&mut self, address: &str, spoken: bool) {
        let last = self.told.keys().last().copied().unwrap_or(0);
        let url = format!("ws://{address}/v1/realtime?resume={}&after={last}", self.token);
        let (mut socket, _) = soon("the handshake", tokio_tungstenite::connect_async(url)).await.unwrap();
        let mut greeted = false;
        // An error is the crash.
        while let Some(Ok(message)) = soon("an event", socket.next()).await {
            let Message::Text(text) = message else { continue };
            let event: Value = serde_json::from_str(&text).unwrap();
            let n = number(&event);
            assert!(n > self.told.keys().last().copied().unwrap_or(0), "each event once and in order: {event}");
            let kind = event["type"].as_str().unwrap().to_owned();
            if kind == "session.created" && !greeted {
                greeted = true;
                self.token = event["session"]["resume"]["token"].as_str().unwrap().to_owned();
                let input = json!({"format": {"type": "audio/pcm", "rate": 16000}});
                let session = json!({"type": "realtime", "include": ["reasoning.text"], "audio": {"input": input}});
                let _ =
                    socket.send(Message::text(json!({"type": "session.update", "session": session}).to_string())).await;
                let _ = self.ask(&mut socket, spoken).await;
            }
            self.told.insert(n, event);
            if kind == "response.done" && greeted {
                let _ = self.ask(&mut socket, spoken).await;
            }
        }
    }

    async fn ask(
        &self,
        socket: &mut (impl futures_util::Sink<Message, Error = tokio_tungstenite::tungstenite::Error> + Unpin),
        spoken: bool,
    ) -> Result<(), tokio_tungstenite::tungstenite::Error> {
        if spoken {
            return socket.send(Message::binary(noise(2.5, |t| t < 1.5 && syllables(t)))).await;
        }
        let content = json!([{"type": "input_text", "text": format!("Question {}.", self.told.len())}]);
        let item = json!({"type": "message", "role": "user", "content": content});
        socket.send(Message::text(json!({"type": "conversation.item.create", "item": item}).to_string())).await?;
        socket.send(Message::text(json!({"type": "response.create"}).to_string())).await
    }
}

#[test]
fn kill_9_loses_nothing_that_a_client_was_told() {
    let crashes: u32 = std::env::var("HEARKEN_CRASHES").map_or(6, |n| n.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut witnesses: Vec<Witness> = (0..4).map(|_| Witness::default()).collect();
    let mut seed = 7_u64;
    for crash in 1..=crashes {
        let victim = Victim::start(folder.path());
        let address = victim.address.clone();
        witnesses = runtime.block_on(async {
            let talks = witnesses.into_iter().enumerate().map(|(i, mut witness)| {
                let address = address.clone();
                tokio::spawn(async move {
                    witness.talk(&address, i % 2 == 1).await;
                    witness
                })
            });
            let talks: Vec<_> = talks.collect();
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            tokio::time::sleep(Duration::from_millis(120 + (seed >> 33) % 500)).await;
            victim.kill();
            let mut back = Vec::new();
            for talk in talks {
                back.push(talk.await.unwrap());
            }
            back
        });
        check(folder.path(), &witnesses, crash);
    }
    let told: usize = witnesses.iter().map(|witness| witness.told.len()).sum();
    println!("{crashes} crashes, {} clients, {told} events told, all of them in the journal", witnesses.len());
    assert!(told > crashes as usize * 40, "the crashes came in the middle of something: {told} events");
}

/// Reads the file as it is and compares it with what was told.
fn check(folder: &Path, witnesses: &[Witness], crash: u32) {
    let file = rusqlite::Connection::open(folder.join("journal.sqlite")).unwrap();
    let sound: String = file.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok", "after crash {crash}");
    for witness in witnesses {
        let name = witness.token.split('.').next().unwrap();
        let mut query =
            file.prepare_cached("SELECT frame FROM events WHERE conversation = ?1 AND number = ?2").unwrap();
        for (number, told) in &witness.told {
            let kept: Option<String> = query.query_row((name, *number as i64), |row| row.get(0)).ok();
            let kept = kept.unwrap_or_else(|| panic!("after crash {crash}, {name} has no event {number}: {told}"));
            assert_eq!(serde_json::from_str::<Value>(&kept).unwrap(), *told);
        }
    }
}
