//! A phone line: a client that speaks Twilio's wire, well, badly and rudely.

use base64::Engine as _;
use futures_util::{SinkExt as _, StreamExt as _};
use hearken::config::{Config, Secret};
use hearken::engine::{Caption, Content, Event, Item};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::harness::{Opened, Server, config, noise_f32, serve, soon, syllables};
use crate::journal::kept;

/// Twilio's end of a media stream.
pub struct Phone {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Phone {
    pub async fn dial(server: &Server) -> Self {
        let url = format!("ws://{}/v1/telephony/twilio", server.address);
        let (socket, _) = soon("the handshake", tokio_tungstenite::connect_async(url)).await.unwrap();
        Self { socket }
    }

    async fn send(&mut self, message: Value) {
        self.socket.send(Message::text(message.to_string())).await.unwrap();
    }

    pub async fn start(&mut self, tracks: &[&str], parameters: Value) {
        self.send(json!({"event": "connected", "protocol": "Call", "version": "1.0.0"})).await;
        let format = json!({"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1});
        let start = json!({"accountSid": "AC1", "streamSid": "MZ1", "callSid": "CA1", "tracks": tracks,
            "mediaFormat": format, "customParameters": parameters});
        self.send(json!({"event": "start", "sequenceNumber": "1", "start": start, "streamSid": "MZ1"})).await;
    }

    /// One chunk of 20 ms, the first being 1.
    async fn media(&mut self, track: &str, chunk: usize, payload: &[u8]) {
        let payload = base64::engine::general_purpose::STANDARD.encode(payload);
        let timestamp = ((chunk - 1) * 20).to_string();
        let media = json!({"track": track, "chunk": chunk.to_string(), "timestamp": timestamp, "payload": payload});
        self.send(json!({"event": "media", "sequenceNumber": "4", "media": media, "streamSid": "MZ1"})).await;
    }

    async fn stop(&mut self) {
        let stop = json!({"accountSid": "AC1", "callSid": "CA1"});
        self.send(json!({"event": "stop", "sequenceNumber": "5", "stop": stop, "streamSid": "MZ1"})).await;
    }

    /// How the server closes.
    async fn closed(&mut self) -> u16 {
        loop {
            match soon("the close", self.socket.next()).await {
                Some(Ok(Message::Close(frame))) => return frame.map_or(1005, |frame| frame.code.into()),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return 1006,
            }
        }
    }
}

/// µ-law from samples at 16 kHz, every second of them: noise needs no filter.
pub fn line(samples: &[f32]) -> Vec<u8> {
    samples.iter().step_by(2).map(|x| ulaw((x * 32_767.0) as i32)).collect()
}

/// ITU-T G.711, as its reference code has it.
fn ulaw(sample: i32) -> u8 {
    let magnitude = sample.abs().min(32_635) + 132;
    let exponent = (7..15).rev().find(|bit| magnitude & (1 << bit) != 0).unwrap() - 7;
    let mantissa = (magnitude >> (exponent + 3)) & 15;
    !((if sample < 0 { 0x80 } else { 0 }) | (exponent << 4) | mantissa) as u8
}

async fn call(server: &Server) -> Value {
    let list: Value = serde_json::from_str(&server.get("/v1/calls", "").await.2).unwrap();
    let id = list["data"][0]["id"].as_str().expect("a call is listed").to_owned();
    serde_json::from_str(&server.get(&format!("/v1/calls/{id}"), "").await.2).unwrap()
}

/// The call when it is over.
async fn over(server: &Server) -> Value {
    let id = call(server).await["id"].as_str().unwrap().to_owned();
    let mut sent = server.send("GET", &format!("/v1/calls/{id}/events"), "", b"").await;
    sent.until("\"state\":\"ended\"").await;
    call(server).await
}

fn silent_notes() -> Config {
    let mut config = config();
    config.calls.notes = false;
    config
}

#[tokio::test]
async fn a_party_that_sends_no_silence_ends_its_turn_while_the_other_goes_on() {
    let mut server = serve(silent_notes()).await;
    let mut phone = Phone::dial(&server).await;
    phone.start(&["inbound", "outbound"], json!({})).await;
    // One speaks for two seconds, and sends nothing any more; the other only listens.
    let customer = line(&noise_f32(2.0, syllables));
    let agent = line(&noise_f32(8.0, |_| false));
    for (n, theirs) in agent.chunks(160).enumerate() {
        if let Some(mine) = customer.chunks(160).nth(n) {
            phone.media("inbound", n + 1, mine).await;
        }
        phone.media("outbound", n + 1, theirs).await;
    }
    // The line is open still.
    server.opened().await.read(["Good", " morning."]).await;
    let id = call(&server).await["id"].as_str().unwrap().to_owned();
    server.send("GET", &format!("/v1/calls/{id}/events"), "", b"").await.until("morning.").await;
    phone.stop().await;
    assert_eq!(phone.closed().await, 1000);
}

#[tokio::test]
async fn two_tracks_are_two_ears_and_one_conversation() {
    let mut server = serve(config()).await;
    let mut phone = Phone::dial(&server).await;
    phone.start(&["inbound", "outbound"], json!({"outbound": "Eve"})).await;
    // One speaks from 1 to 3 s, the other from 4 to 6 s.
    let customer = line(&noise_f32(8.0, |t| (1.0..3.0).contains(&t) && syllables(t)));
    let agent = line(&noise_f32(8.0, |t| (4.0..6.0).contains(&t) && syllables(t)));
    for (n, (mine, theirs)) in customer.chunks(160).zip(agent.chunks(160)).enumerate() {
        phone.media("inbound", n + 1, mine).await;
        phone.media("outbound", n + 1, theirs).await;
        if n == 100 {
            phone.send(json!({"event": "mark", "streamSid": "MZ1", "mark": {"name": "greeting"}})).await;
            phone
                .send(json!({"event": "dtmf", "streamSid": "MZ1", "dtmf": {"track": "inbound_track", "digit": "7"}}))
                .await;
        }
    }
    phone.stop().await;
    let first = server.opened().await;
    first.read(["I want", " my money."]).await;
    let note = server.asked().await;
    let second = server.opened().await;
    second.read(["Of", " course."]).await;
    assert_ne!(first.listen.session, second.listen.session, "each party has an ear of its own");
    let Item::Message { content, .. } = note.request.conversation.last().unwrap() else { panic!() };
    let [Content::Text(who), Content::Sound(sound), Content::Text(_)] = &content[..] else { panic!("{content:?}") };
    assert_eq!(who, "customer: ");
    assert!((32_000..42_000).contains(&sound.len()), "{}", sound.len());
    note.say(Event::Reasoning("Loud and fast.".into())).await;
    note.say(Event::Reply("Angry: loud. Wants a refund. The risk is high.".into())).await;
    note.done().await;
    let note = server.asked().await;
    let texts = format!("{:?}", note.request.conversation);
    assert!(texts.contains("customer: I want my money.") && texts.contains("Eve: "), "{texts:.600}");
    note.say(Event::Reply("Calm, no risk: none.".into())).await;
    note.done().await;
    let summary = server.asked().await;
    assert!(format!("{:?}", summary.request.conversation).contains("Eve: Of course."));
    summary.say(Event::Reply("A refund was promised.".into())).await;
    summary.done().await;
    assert_eq!(phone.closed().await, 1000);
    let call = over(&server).await;
    let turns = call["turns"].as_array().unwrap();
    assert_eq!(turns.len(), 2, "{call:#}");
    let of = |n: usize| (turns[n]["party"].as_str().unwrap(), turns[n]["words"].as_str().unwrap());
    assert_eq!((of(0), of(1)), (("customer", "I want my money."), ("Eve", "Of course.")));
    for (turn, start, end) in [(&turns[0], 1.0, 3.0), (&turns[1], 4.0, 6.0)] {
        let near = |key: &str, at: f64| (turn[key].as_f64().unwrap() - at).abs() < 0.2;
        assert!(near("start", start) && near("end", end), "{turn:#}");
    }
    assert_eq!((&turns[0]["note"]["mood"], &turns[0]["note"]["risk"]), (&json!("angry"), &json!("high")));
    assert_eq!((&turns[1]["note"]["mood"], &call["summary"]), (&json!("calm"), &json!("A refund was promised.")));
    let ratio = call["parties"][0]["talk_ratio"].as_f64().unwrap();
    assert!((ratio - 0.5).abs() < 0.02, "{ratio}");
    let marks: Vec<&Value> = call["marks"].as_array().unwrap().iter().map(|mark| &mark["name"]).collect();
    assert_eq!(marks, ["greeting", "a key was pressed"], "which key is nobody's business");
    assert!((call["marks"][0]["at"].as_f64().unwrap() - 2.02).abs() < 0.1);
    // The engine forgets both ears, the mind and the visit.
    for _ in 0..4 {
        soon("the closing", server.closed.recv()).await;
    }
}

/// Both tracks, from a chunk on; the next chunk's number.
pub async fn both(phone: &mut Phone, first: usize, inbound: &[u8], outbound: &[u8]) -> usize {
    let chunks = inbound.chunks(160).zip(outbound.chunks(160));
    for (n, (mine, theirs)) in chunks.clone().enumerate() {
        phone.media("inbound", first + n, mine).await;
        phone.media("outbound", first + n, theirs).await;
    }
    first + chunks.len()
}

async fn caption(ear: &Opened, committed: &str, tentative: &str, is_last: bool) {
    let caption = Caption { committed: committed.into(), tentative: tentative.into(), is_last };
    ear.captions.send(caption).await.unwrap();
}

#[tokio::test]
async fn words_are_told_while_they_are_spoken_and_stay() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { journal: kept(folder.path()).journal, ..silent_notes() };
    let mut server = serve(config.clone()).await;
    let mut phone = Phone::dial(&server).await;
    phone.start(&["inbound", "outbound"], json!({"outbound": "Eve"})).await;
    // Both speak at once, from 1 s on.
    let speech = line(&noise_f32(3.0, |t| t > 1.0 && syllables(t)));
    let next = both(&mut phone, 1, &speech, &speech).await;
    let ears = [server.opened().await, server.opened().await];
    assert_ne!(ears[0].listen.session, ears[1].listen.session);
    let path = format!("/v1/calls/{}", call(&server).await["id"].as_str().unwrap());
    let mut watch = server.send("GET", &format!("{path}/events"), "", b"").await;
    watch.until("call.snapshot").await;
    assert!(!ears[0].fed.is_finished.load(std::sync::atomic::Ordering::Acquire), "nobody has finished");
    caption(&ears[0], "I want", "my mummy", false).await;
    watch.until("my mummy").await;
    let told = call(&server).await["saying"][0].clone();
    assert_eq!((&told["words"], &told["tentative"]), (&json!("I want"), &json!("my mummy")), "{told:#}");
    assert!((told["start"].as_f64().unwrap() - 0.7).abs() < 0.2, "{told:#}");
    caption(&ears[1], "Of", "", false).await;
    watch.until("\"Of\"").await;
    caption(&ears[0], " my money", "", false).await;
    watch.until("I want my money").await;
    let shown = call(&server).await;
    let saying = |n: usize| (shown["saying"][n]["party"].as_str(), shown["saying"][n]["words"].as_str());
    assert_eq!((saying(0), saying(1)), ((Some("customer"), Some("I want my money")), (Some("Eve"), Some("Of"))));
    assert_eq!(shown["turns"], json!([]));

    // Whoever comes to the journal of a server that was killed now finds all that was told.
    let after = tempfile::tempdir().unwrap();
    for name in ["journal.sqlite", "journal.sqlite-wal"] {
        std::fs::copy(folder.path().join(name), after.path().join(name)).unwrap();
    }
    let killed = serve(Config { journal: kept(after.path()).journal, ..silent_notes() }).await;
    let restored = call(&killed).await;
    let marks: Vec<&str> = restored["marks"].as_array().unwrap().iter().filter_map(|m| m["name"].as_str()).collect();
    let said = ["customer was saying: I want my money", "Eve was saying: Of", "the server was restarted here"];
    assert_eq!(marks, said, "{restored:#}");
    assert_eq!((&restored["state"], &restored["saying"]), (&json!("ended"), &json!([])));

    // The turn is over before its last words are read.
    let silence = line(&[0.0; 32_000]);
    both(&mut phone, next, &silence, &silence).await;
    soon("the end of the sound", async {
        while !ears.iter().all(|ear| ear.fed.is_finished.load(std::sync::atomic::Ordering::Acquire)) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let shown = call(&server).await;
    let turns = shown["turns"].as_array().unwrap();
    assert_eq!(turns.len(), 2, "{shown:#}");
    let its = turns.iter().find(|turn| turn["party"] == "customer").unwrap();
    assert_eq!((&its["words"], &shown["saying"][0]["turn"]), (&Value::Null, &its["id"]), "{shown:#}");
    caption(&ears[0], " back.", "", true).await;
    caption(&ears[1], " course.", "", true).await;
    watch.until("Of course.").await;
    phone.stop().await;
    assert_eq!(phone.closed().await, 1000);
    let call = over(&server).await;
    let words: Vec<&Value> = call["turns"].as_array().unwrap().iter().map(|turn| &turn["words"]).collect();
    assert!(words.contains(&&json!("I want my money back.")) && words.contains(&&json!("Of course.")), "{call:#}");
    assert_eq!(call["saying"], json!([]));
    // The ear has heard all of the turn, and the silence that the last words need.
    let heard = ears[0].fed.samples.lock().unwrap().len() as f64 / 16_000.0;
    let turn = its["end"].as_f64().unwrap() - its["start"].as_f64().unwrap();
    assert!((turn + 3.0..turn + 4.0).contains(&heard), "{heard} s of {turn}");
}

#[tokio::test]
async fn a_turn_whose_ear_was_lost_is_read_when_it_is_over() {
    let mut server = serve(silent_notes()).await;
    let mut phone = Phone::dial(&server).await;
    phone.start(&["inbound"], json!({})).await;
    let sound = line(&noise_f32(5.0, |t| (1.0..3.0).contains(&t) && syllables(t)));
    for (n, chunk) in sound.chunks(160).enumerate() {
        phone.media("inbound", n + 1, chunk).await;
    }
    // Without a word.
    drop(server.opened().await);
    server.opened().await.read(["all", " of it"]).await;
    phone.stop().await;
    assert_eq!(over(&server).await["turns"][0]["words"], "all of it");
}

#[tokio::test]
async fn chunks_out_of_order_and_lost_ones_leave_the_rest_in_its_place() {
    let server = serve(silent_notes()).await;
    let mut phone = Phone::dial(&server).await;
    phone.start(&["inbound"], json!({})).await;
    let sound = line(&noise_f32(6.0, |t| (1.0..3.0).contains(&t) && syllables(t)));
    let mut chunks: Vec<(usize, &[u8])> = sound.chunks(160).enumerate().map(|(n, chunk)| (n + 1, chunk)).collect();
    // Every tenth changes places with its second neighbour, and half a second of silence is lost.
    (10..chunks.len() - 2).step_by(10).for_each(|at| chunks.swap(at, at + 2));
    chunks.retain(|(n, _)| !(200..225).contains(n));
    for (n, chunk) in chunks {
        phone.media("inbound", n, chunk).await;
    }
    phone.stop().await;
    assert_eq!(phone.closed().await, 1000);
    let call = call(&server).await;
    assert!((call["seconds"].as_f64().unwrap() - 6.0).abs() < 0.01, "{call:#}");
    let turn = &call["turns"][0];
    assert!(
        (turn["start"].as_f64().unwrap() - 1.0).abs() < 0.2 && (turn["end"].as_f64().unwrap() - 3.0).abs() < 0.2,
        "{turn:#}"
    );
}

#[tokio::test]
async fn a_line_is_opened_by_its_token_and_its_call_is_seen_by_the_same_alone() {
    let mut config = silent_notes();
    config.server.api_tokens = vec![Secret::new("right"), Secret::new("other")];
    let server = serve(config).await;
    for parameters in [json!({}), json!({"token": "wrong"}), json!({"token": 5})] {
        let mut phone = Phone::dial(&server).await;
        phone.start(&["inbound"], parameters).await;
        assert_eq!(phone.closed().await, 1008);
    }
    let mut phone = Phone::dial(&server).await;
    phone.start(&["inbound"], json!({"token": "right"})).await;
    phone.media("inbound", 1, &[0xff; 160]).await;
    phone.stop().await;
    assert_eq!(phone.closed().await, 1000);
    let mut seen = Vec::new();
    for token in ["right", "other"] {
        let (_, _, body) = server.get("/v1/calls", &format!("Authorization: Bearer {token}\r\n")).await;
        seen.push(serde_json::from_str::<Value>(&body).unwrap()["data"].as_array().unwrap().len());
    }
    assert_eq!(seen, [1, 0]);
    assert_eq!(server.get("/v1/calls", "").await.0, 401);
}

#[tokio::test]
async fn what_is_no_media_stream_ends_the_connection_and_nothing_else() {
    let server = serve(silent_notes()).await;
    let text = |value: Value| Message::text(value.to_string());
    let start = |encoding: &str| json!({"event": "start", "start": {"streamSid": "a", "mediaFormat": {"encoding": encoding, "sampleRate": "8000"}}});
    let media = |media: Value| json!({"event": "media", "media": media});
    for (begun, message, code) in [
        (false, Message::text("no json"), 1007),
        (false, text(json!({"no": "event"})), 1007),
        (false, text(start("audio/l16")), 1007),
        (false, text(json!({"event": "start", "start": {}})), 1007),
        (false, text(media(json!({"chunk": "1", "timestamp": "0", "payload": ""}))), 1008),
        (false, Message::binary(vec![1, 2, 3]), 1003),
        (true, text(start("audio/x-mulaw")), 1008),
        (true, text(media(json!({"chunk": "one", "timestamp": "0", "payload": ""}))), 1007),
        (true, text(media(json!({"chunk": "1", "timestamp": "-5", "payload": ""}))), 1007),
        (true, text(media(json!({"chunk": "1", "timestamp": "18446744073709551615", "payload": "AAAA"}))), 1007),
        (true, text(media(json!({"chunk": "1", "timestamp": "0", "payload": "!!!"}))), 1007),
        (true, text(media(json!({"chunk": "1", "timestamp": "0", "payload": "A".repeat(40_000)}))), 1007),
        (true, text(media(json!({"track": "sideways", "chunk": "1", "timestamp": "0", "payload": ""}))), 1007),
        (true, Message::text("x".repeat(70_000)), 1002),
    ] {
        let mut phone = Phone::dial(&server).await;
        if begun {
            phone.start(&["inbound"], json!({})).await;
        }
        let shown = format!("{message:.120?}");
        phone.socket.send(message).await.unwrap();
        assert_eq!(phone.closed().await, code, "{shown}");
    }
    // Unknown events and tracks that were not announced are passed over.
    let mut phone = Phone::dial(&server).await;
    phone.start(&["inbound"], json!({})).await;
    phone.send(json!({"event": "weather"})).await;
    phone.media("outbound", 1, &[0; 160]).await;
    phone.stop().await;
    assert_eq!(phone.closed().await, 1000);
    assert_eq!(call(&server).await["parties"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_line_that_breaks_off_ends_its_call_and_gives_its_place_back() {
    let mut config = silent_notes();
    config.server.max_sessions = 1;
    let mut server = serve(config).await;
    let mut phone = Phone::dial(&server).await;
    phone.start(&["inbound"], json!({})).await;
    let sound = line(&noise_f32(3.0, |t| t > 1.0 && syllables(t)));
    for (n, chunk) in sound.chunks(160).enumerate() {
        phone.media("inbound", n + 1, chunk).await;
    }
    // One more finds no place.
    let url = format!("ws://{}/v1/telephony/twilio", server.address);
    let refused = tokio_tungstenite::connect_async(url).await;
    assert!(matches!(refused, Err(tokio_tungstenite::tungstenite::Error::Http(r)) if r.status() == 503));
    drop(phone);
    // What was being said has been said.
    server.opened().await.read(["cut", " off"]).await;
    let call = over(&server).await;
    assert_eq!(call["turns"][0]["words"], "cut off");
    for _ in 0..3 {
        soon("the closing", server.closed.recv()).await;
    }
    let mut next = Phone::dial(&server).await;
    next.start(&["inbound"], json!({})).await;
    next.stop().await;
    assert_eq!(next.closed().await, 1000);
}
