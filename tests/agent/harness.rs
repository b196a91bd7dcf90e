//! A server on port 0, a client, and an engine that hands each request to the test.

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use hearken::config::{Config, Detector};
use hearken::engine::{
    Caption, Engine, EngineError, Event, Feed, Finish, Listen, Listening, Request, SessionId, Timings, Turn, Usage,
};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// Longer than anything here takes on a loaded machine; it only keeps a broken test from hanging.
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

/// One request, and the means to answer it.
pub struct Asked {
    pub request: Request,
    pub events: mpsc::Sender<Event>,
    pub cancelled: Arc<AtomicBool>,
}

impl Asked {
    pub async fn say(&self, event: Event) {
        self.events.send(event).await.unwrap();
    }

    pub async fn done(self) {
        self.say(done()).await;
    }

    /// Waits until nobody wants the answer any more.
    pub async fn dropped(&self) {
        soon("the cancellation", self.events.closed()).await;
        assert!(self.cancelled.load(std::sync::atomic::Ordering::Acquire));
    }
}

pub fn done() -> Event {
    let usage = Usage {
        text_tokens: 7,
        sound_tokens: 5,
        cached_tokens: 3,
        cached_sound_tokens: 1,
        reasoning_tokens: 2,
        reply_tokens: 4,
    };
    let timings = Timings { prefill: Duration::from_micros(1500), ..Timings::default() };
    Event::Done { finish: Finish::Stop, usage, timings }
}

/// What an open ear was given.
#[derive(Debug, Default)]
pub struct Fed {
    pub samples: Mutex<Vec<f32>>,
    pub is_finished: AtomicBool,
}

#[derive(Debug)]
struct Inlet(Arc<Fed>);

impl Feed for Inlet {
    fn push(&self, samples: &[f32]) -> usize {
        self.0.samples.lock().unwrap().extend_from_slice(samples);
        0
    }

    fn finish(&self) {
        self.0.is_finished.store(true, std::sync::atomic::Ordering::Release);
    }
}

impl Opened {
    /// Waits until the sound is at its end, and says these words of it in two pieces.
    pub async fn read(&self, words: [&str; 2]) {
        soon("the end of the sound", async {
            while !self.fed.is_finished.load(std::sync::atomic::Ordering::Acquire) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        for (word, is_last) in words.into_iter().zip([false, true]) {
            let caption = Caption { committed: word.into(), tentative: String::new(), is_last };
            self.captions.send(caption).await.unwrap();
        }
    }
}

/// One open ear: what it hears, and the means to say what it understood.
pub struct Opened {
    pub listen: Listen,
    pub fed: Arc<Fed>,
    pub captions: mpsc::Sender<Caption>,
}

/// Every request and every ear goes to the test; sessions that end are told too.
pub struct TestEngine {
    asked: mpsc::UnboundedSender<Asked>,
    opened: mpsc::UnboundedSender<Opened>,
    closed: mpsc::UnboundedSender<SessionId>,
    /// Instead of asking: refuse, or fall over.
    pub refusal: Mutex<Option<EngineError>>,
    pub panics: AtomicBool,
}

impl Engine for TestEngine {
    fn model(&self) -> &str {
        "test-model"
    }

    fn respond(&self, request: Request) -> Result<Turn, EngineError> {
        assert!(!self.panics.load(std::sync::atomic::Ordering::Acquire), "a bug in one session, on purpose");
        if let Some(refusal) = self.refusal.lock().unwrap().clone() {
            return Err(refusal);
        }
        let (turn, events, cancelled) = Turn::channel(64);
        let _ = self.asked.send(Asked { request, events, cancelled });
        Ok(turn)
    }

    fn listen(&self, listen: Listen) -> Result<Listening, EngineError> {
        let fed = Arc::new(Fed::default());
        let (listening, captions) = Listening::channel(Box::new(Inlet(fed.clone())), 64);
        let _ = self.opened.send(Opened { listen, fed, captions });
        Ok(listening)
    }

    fn close(&self, session: SessionId) {
        let _ = self.closed.send(session);
    }
}

pub struct Server {
    pub address: SocketAddr,
    pub engine: Arc<TestEngine>,
    pub asked: mpsc::UnboundedReceiver<Asked>,
    pub opened: mpsc::UnboundedReceiver<Opened>,
    pub closed: mpsc::UnboundedReceiver<SessionId>,
    pub stop: Option<oneshot::Sender<()>>,
    pub task: tokio::task::JoinHandle<std::io::Result<()>>,
}

/// The defaults, with the detector that takes any noise for speech, so that tests need no voices, and nothing kept.
pub fn config() -> Config {
    let mut config = Config::default();
    config.voice.detector = Detector::Energy;
    config.journal.enabled = false;
    config.webrtc.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    config
}

/// The same with the detector that knows voices, as it comes.
pub fn listening() -> Config {
    Config { voice: Config::default().voice, ..config() }
}

pub async fn serve(config: Config) -> Server {
    let (asked_tx, asked) = mpsc::unbounded_channel();
    let (opened_tx, opened) = mpsc::unbounded_channel();
    let (closed_tx, closed) = mpsc::unbounded_channel();
    let engine = Arc::new(TestEngine {
        asked: asked_tx,
        opened: opened_tx,
        closed: closed_tx,
        refusal: Mutex::new(None),
        panics: AtomicBool::new(false),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async {
        let _ = stopped.await;
    };
    let task = tokio::spawn(hearken::transport::serve(listener, Arc::new(config), engine.clone(), shutdown));
    Server { address, engine, asked, opened, closed, stop: Some(stop), task }
}

impl Server {
    pub async fn asked(&mut self) -> Asked {
        soon("a request to the engine", self.asked.recv()).await.unwrap()
    }

    /// The next ear that is opened.
    pub async fn opened(&mut self) -> Opened {
        soon("an ear", self.opened.recv()).await.unwrap()
    }

    pub async fn connect(&self) -> Client {
        let mut client = self.connect_with(&[]).await.unwrap();
        client.session = client.expect("session.created").await["session"].clone();
        client
    }

    pub async fn connect_with(&self, headers: &[(&'static str, &str)]) -> Result<Client, Error> {
        self.connect_to("model=any", headers).await
    }

    pub async fn connect_to(&self, query: &str, headers: &[(&'static str, &str)]) -> Result<Client, Error> {
        let mut request = format!("ws://{}/v1/realtime?{query}", self.address).into_client_request()?;
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let (socket, response) = soon("the handshake", tokio_tungstenite::connect_async(request)).await?;
        let protocol = response.headers().get("sec-websocket-protocol").map(|v| v.to_str().unwrap().to_owned());
        Ok(Client { socket, protocol, session: Value::Null })
    }

    /// A connection that can be come back to: with an empty token the first one, else one more.
    pub async fn resume(&self, token: &str, after: &str) -> Client {
        self.resume_with(token, after, &[]).await.unwrap()
    }

    pub async fn resume_with(
        &self,
        token: &str,
        after: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Client, Error> {
        self.connect_to(&format!("resume={token}&after={after}"), headers).await
    }

    /// A plain HTTP/1.1 GET: status, whole head in lower case, body.
    pub async fn get(&self, path: &str, headers: &str) -> (u16, String, String) {
        self.request("GET", path, headers, "").await
    }

    /// A POST of JSON, and the JSON that answers it.
    pub async fn post(&self, path: &str, headers: &str, body: Value) -> (u16, Value) {
        let body = body.to_string();
        let headers = format!("{headers}Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        let (status, _, answer) = self.request("POST", path, &headers, &body).await;
        (status, serde_json::from_str(&answer).unwrap())
    }

    pub async fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String, String) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let host = if headers.to_lowercase().contains("host:") { String::new() } else { "Host: localhost\r\n".into() };
        let request = format!("{method} {path} HTTP/1.1\r\n{host}Connection: close\r\n{headers}\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        soon("the answer", stream.read_to_string(&mut text)).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), body.to_owned())
    }
}

/// An answer over plain HTTP.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// In lower case.
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The data of a body of server-sent events.
    pub fn events(&self) -> Vec<&str> {
        self.body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect()
    }

    /// Code and parameter of an error.
    pub fn refusal(&self) -> (String, Option<String>) {
        let error = self.json()["error"].clone();
        assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
        (error["code"].as_str().unwrap().to_owned(), error["param"].as_str().map(str::to_owned))
    }
}

/// A request on its way.
pub struct Sent(pub TcpStream);

impl Sent {
    /// The rest of the answer, which ends when the server closes.
    pub async fn answer(mut self) -> Answer {
        use tokio::io::AsyncReadExt as _;
        let mut text = String::new();
        soon("the answer", self.0.read_to_string(&mut text)).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    /// Waits until this has come.
    pub async fn until(&mut self, what: &str) -> String {
        use tokio::io::AsyncReadExt as _;
        let mut bytes = Vec::new();
        while !String::from_utf8_lossy(&bytes).contains(what) {
            let mut some = [0; 4096];
            let n = soon(what, self.0.read(&mut some)).await.unwrap();
            assert!(n > 0, "{what} did not come: {}", String::from_utf8_lossy(&bytes));
            bytes.extend_from_slice(&some[..n]);
        }
        String::from_utf8(bytes).unwrap()
    }
}

impl Server {
    /// Sends a request; HTTP/1.0, whose answers end with the connection and come in no chunks.
    pub async fn send(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> Sent {
        self.send_with(method, path, &format!("Content-Type: {content_type}\r\n"), body).await
    }

    /// As [`Server::send`], with any headers.
    pub async fn send_with(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Sent {
        use tokio::io::AsyncWriteExt as _;
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let n = body.len();
        let head = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\n{headers}Content-Length: {n}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        // A server that refuses does not wait for the body, and may have hung up.
        drop(stream.write_all(body).await);
        Sent(stream)
    }

    /// Sends a form with a file.
    pub async fn send_form(&self, path: &str, file: Option<&[u8]>, fields: &[(&str, &str)]) -> Sent {
        self.send("POST", path, "multipart/form-data; boundary=B", &form(file, fields)).await
    }

    pub async fn begin_post(&self, path: &str, body: &Value) -> Sent {
        self.send("POST", path, "application/json", body.to_string().as_bytes()).await
    }
}

pub struct Client {
    pub socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pub protocol: Option<String>,
    pub session: Value,
}

impl Client {
    pub async fn send(&mut self, event: Value) {
        self.socket.send(Message::text(event.to_string())).await.unwrap();
    }

    pub async fn raw(&mut self, message: Message) {
        self.socket.send(message).await.unwrap();
    }

    /// The next event, whatever it is.
    pub async fn event(&mut self) -> Value {
        loop {
            match soon("an event", self.socket.next()).await {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).unwrap(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("an event was expected, {other:?} came"),
            }
        }
    }

    /// The next event, which is of this type.
    pub async fn expect(&mut self, kind: &str) -> Value {
        let event = self.event().await;
        assert_eq!(event["type"], kind, "{event:#}");
        assert!(event["event_id"].is_string());
        event
    }

    /// These events and no other, in this order.
    pub async fn expect_all(&mut self, kinds: &[&str]) -> Vec<Value> {
        let mut events = Vec::new();
        for kind in kinds {
            events.push(self.expect(kind).await);
        }
        events
    }

    /// Changes the session and waits until it is so.
    pub async fn update(&mut self, session: Value) -> Value {
        self.send(json!({"type": "session.update", "session": session})).await;
        self.expect("session.updated").await["session"].clone()
    }

    /// Turns are ended by hand, sound is PCM16 at 16 kHz.
    pub async fn manual(&mut self) {
        let input = json!({"format": {"type": "audio/pcm", "rate": 16000}, "turn_detection": null});
        self.update(json!({"type": "realtime", "audio": {"input": input}})).await;
    }

    pub async fn say(&mut self, text: &str) {
        let content = json!([{"type": "input_text", "text": text}]);
        self.send(json!({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}}))
            .await;
        self.expect_all(&["conversation.item.added", "conversation.item.done"]).await;
    }

    /// How the server closes.
    pub async fn close_frame(&mut self) -> Option<CloseFrame> {
        loop {
            match soon("the close", self.socket.next()).await {
                Some(Ok(Message::Close(frame))) => return frame,
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    }
}

/// Loud and quiet four times a second, as syllables are: noise that never pauses is no speech to the energy detector.
pub fn syllables(t: f64) -> bool {
    (t * 4.0).fract() < 0.7
}

/// A file of 16 kHz samples.
pub fn wav(samples: &[f32]) -> Vec<u8> {
    wav_of(1, samples)
}

/// A file of two voices.
pub fn stereo(left: &[f32], right: &[f32]) -> Vec<u8> {
    let at = |lane: &[f32], i: usize| lane.get(i).copied().unwrap_or(0.0);
    let both: Vec<f32> = (0..left.len().max(right.len())).flat_map(|i| [at(left, i), at(right, i)]).collect();
    wav_of(2, &both)
}

fn wav_of(channels: u8, samples: &[f32]) -> Vec<u8> {
    let data = pcm16(samples);
    let mut wav = Vec::from(*b"RIFF");
    wav.extend((36 + data.len() as u32).to_le_bytes());
    wav.extend(b"WAVEfmt \x10\0\0\0\x01\0");
    wav.extend([channels, 0]);
    wav.extend([16_000_u32, 32_000 * u32::from(channels)].iter().flat_map(|n| n.to_le_bytes()));
    wav.extend([2 * channels, 0, 16, 0]);
    wav.extend(b"data");
    wav.extend((data.len() as u32).to_le_bytes());
    wav.extend(data);
    wav
}

/// A form with a file.
pub fn form(file: Option<&[u8]>, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in fields {
        body.extend(format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n").bytes());
    }
    if let Some(file) = file {
        body.extend(b"--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n");
        body.extend(b"Content-Type: audio/wav\r\n\r\n");
        body.extend(file);
        body.extend(b"\r\n");
    }
    body.extend(b"--B--\r\n");
    body
}

/// Noise that is loud while `loud` says so, as PCM16 bytes at 16 kHz.
pub fn noise(seconds: f64, loud: impl Fn(f64) -> bool) -> Vec<u8> {
    pcm16(&noise_f32(seconds, loud))
}

pub fn noise_f32(seconds: f64, loud: impl Fn(f64) -> bool) -> Vec<f32> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let n = (seconds * 16_000.0) as usize;
    (0..n).map(|i| next() * if loud(i as f64 / 16_000.0) { 0.3 } else { 0.0005 }).collect()
}

/// A recording of real speech.
pub fn speech(name: &str) -> Vec<f32> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/audio");
    hearken::audio::file::read(&folder.join(name), 60.0).unwrap()
}

pub fn pcm16(samples: &[f32]) -> Vec<u8> {
    samples.iter().flat_map(|x| ((x * 32767.0) as i16).to_le_bytes()).collect()
}
