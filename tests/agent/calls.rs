//! A call from a stereo file: what is measured of it against the script it was made from, how it is told, and what raises an alert.

use hearken::config::{Config, Rule, Secret};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::harness::{Answer, Server, listening, serve, soon, speech, stereo, wav};
use crate::journal::kept;

const PATH: &str = "/v1/calls";

/// A clip without the silence at its ends.
fn clip(name: &str) -> Vec<f32> {
    let sound = speech(&format!("sense_and_sensibility_01_austen_64kb-{name}.wav"));
    let loud = |frame: &[f32]| (frame.iter().map(|x| x * x).sum::<f32>() / frame.len() as f32).sqrt();
    let peak = sound.chunks(320).map(loud).fold(0.0, f32::max);
    let first = sound.chunks(320).position(|frame| loud(frame) > 0.05 * peak).unwrap();
    let last = sound.chunks(320).rposition(|frame| loud(frame) > 0.05 * peak).unwrap();
    sound[first * 320..(last + 1) * 320.min(sound.len())].to_vec()
}

/// What is said when by whom, and the two channels that it makes.
struct Script {
    lines: Vec<(usize, f64, f64)>,
    channels: [Vec<f32>; 2],
}

impl Script {
    fn new() -> Self {
        Self { lines: Vec::new(), channels: [Vec::new(), Vec::new()] }
    }

    /// A party says this from here on; when it ends.
    fn say(&mut self, party: usize, at: f64, sound: &[f32]) -> f64 {
        let from = (at * 16_000.0) as usize;
        let channel = &mut self.channels[party];
        channel.resize(channel.len().max(from + sound.len()), 0.0);
        channel[from..from + sound.len()].copy_from_slice(sound);
        let end = at + sound.len() as f64 / 16_000.0;
        self.lines.push((party, at, end));
        end
    }

    fn file(&self, seconds: f64) -> Vec<u8> {
        let mut channels = self.channels.clone();
        channels.iter_mut().for_each(|channel| channel.resize((seconds * 16_000.0) as usize, 0.0));
        stereo(&channels[0], &channels[1])
    }

    fn talk(&self, party: usize) -> f64 {
        self.lines.iter().filter(|line| line.0 == party).map(|line| line.2 - line.1).sum()
    }
}

fn quiet() -> Config {
    let mut config = listening();
    config.calls.notes = false;
    config
}

/// Answers every ear, the n-th with the n-th words.
async fn answer_ears(server: &mut Server, words: &[[&str; 2]]) {
    for words in words {
        server.opened().await.read(*words).await;
    }
}

fn created(answer: &Answer) -> String {
    assert_eq!(answer.status, 201, "{answer:?}");
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    assert!(answer.head.contains(&format!("location: /v1/calls/{id}")), "{}", answer.head);
    id
}

#[tokio::test]
async fn measures_agree_with_the_script() {
    let mut server = serve(quiet()).await;
    let mut script = Script::new();
    let mut at = script.say(0, 1.0, &clip("0870"));
    at = script.say(1, at + 0.8, &clip("0880"));
    let first = script.say(0, at + 0.6, &clip("0920"));
    // The agent breaks in 1.5 s before the customer has done, and the customer later 1 s before the agent has.
    let broke_in = first - 1.5;
    at = script.say(1, broke_in, &clip("0890"));
    let broke_back = at - 1.0;
    let last = script.say(0, broke_back, &clip("0930"));
    let seconds = last + 4.0;
    let fields = [("left", "Ann"), ("right", "Bob")];
    let sent = server.send_form(PATH, Some(&script.file(seconds)), &fields).await;
    let id = created(&sent.answer().await);
    let mut watch = server.send("GET", &format!("{PATH}/{id}/events"), "", b"").await;
    watch.until("call.snapshot").await;
    let words = ["one two three four five six", "a b", "c d", "e f", "g h"].map(|words| [words, ""]);
    answer_ears(&mut server, &words).await;
    watch.until("\"type\":\"call.ended\"").await;
    let call: Value = serde_json::from_str(&server.get(&format!("{PATH}/{id}"), "").await.2).unwrap();
    assert_eq!(call["turns"].as_array().unwrap().len(), 5, "{call:#}");
    let party = |n: usize, key: &str| call["parties"][n][key].as_f64().unwrap();
    assert_eq!((&call["parties"][0]["name"], &call["parties"][1]["name"]), (&json!("Ann"), &json!("Bob")));
    let all = script.talk(0) + script.talk(1);
    for n in [0, 1] {
        let (found, true_ratio) = (party(n, "talk_ratio"), script.talk(n) / all);
        assert!((found - true_ratio).abs() < 0.02, "{n}: {found} against {true_ratio}");
        assert!((party(n, "talk_seconds") / script.talk(n) - 1.0).abs() < 0.1, "{call:#}");
        assert!((-40.0..-10.0).contains(&party(n, "loudness_db")));
        // One reader, a man: in his spectrum the harmonics stand 95 to 110 Hz apart.
        assert!((85.0..120.0).contains(&party(n, "pitch_hz")), "{call:#}");
        assert!((2.0..6.5).contains(&party(n, "syllables_per_second")), "{call:#}");
    }
    let interruptions: Vec<(&str, f64)> = call["turns"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|turn| turn["interrupts"] == true)
        .map(|turn| (turn["party"].as_str().unwrap(), turn["start"].as_f64().unwrap()))
        .collect();
    let [("Bob", bob), ("Ann", ann)] = interruptions[..] else { panic!("{interruptions:?}") };
    assert!((bob - broke_in).abs() < 0.3 && (ann - broke_back).abs() < 0.3, "{interruptions:?}");
    assert_eq!((party(0, "interruptions"), party(1, "interruptions")), (1.0, 1.0));
    let (silence, longest) =
        (call["silence"]["seconds"].as_f64().unwrap(), call["silence"]["longest_seconds"].as_f64().unwrap());
    assert!((silence - (1.0 + 0.8 + 0.6 + 4.0)).abs() < 1.0 && (longest - 4.0).abs() < 0.3, "{silence} {longest}");
    // As a table.
    let table = server.get(&format!("{PATH}/{id}?format=csv"), "").await;
    assert!(table.1.contains("text/csv") && table.2.lines().count() == 6, "{}", table.2);
    assert!(table.2.contains(",\"Ann\",false,") && table.2.contains("\"one two three four five six\""), "{}", table.2);
    // And forgotten.
    assert_eq!(server.send("DELETE", &format!("{PATH}/{id}"), "", b"").await.answer().await.status, 204);
    assert_eq!(server.get(&format!("{PATH}/{id}"), "").await.0, 404);
}

/// A line of tests/audio/call.json.
#[derive(Deserialize)]
struct Said {
    party: usize,
    start: f64,
    end: f64,
    interrupts: bool,
}

/// Two made voices that answer each other early, break in, agree in the middle (tests/audio/README.md).
#[tokio::test]
async fn a_made_call_agrees_with_its_script() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/audio");
    let script: Vec<Said> = serde_json::from_str(&std::fs::read_to_string(folder.join("call.json")).unwrap()).unwrap();
    let mut server = serve(quiet()).await;
    let sent = server.send_form(PATH, Some(&std::fs::read(folder.join("call.ogg")).unwrap()), &[]).await;
    let id = created(&sent.answer().await);
    let mut watch = server.send("GET", &format!("{PATH}/{id}/events"), "", b"").await;
    watch.until("call.snapshot").await;
    answer_ears(&mut server, &vec![["some", " words"]; script.len()]).await;
    let events = watch.until("\"type\":\"call.ended\"").await;
    assert!(events.contains("\"speaking\":[\"agent\"]"), "who speaks is told while they do");
    let call: Value = serde_json::from_str(&server.get(&format!("{PATH}/{id}"), "").await.2).unwrap();
    let turns = call["turns"].as_array().unwrap();
    assert_eq!((turns.len(), &call["speaking"]), (script.len(), &json!([])), "{call:#}");
    let talk = |party: usize| -> f64 {
        script.iter().filter(|line| line.party == party).map(|line| line.end - line.start).sum()
    };
    let ratio = call["parties"][0]["talk_ratio"].as_f64().unwrap();
    let wanted = talk(0) / (talk(0) + talk(1));
    assert!((ratio - wanted).abs() < 0.01, "{ratio} against {wanted}");
    let mut script: Vec<&Said> = script.iter().collect();
    script.sort_by(|a, b| a.start.total_cmp(&b.start));
    for (turn, line) in turns.iter().zip(script) {
        let near = |key: &str, at: f64| (turn[key].as_f64().unwrap() - at).abs() < 0.1;
        assert_eq!(
            (&turn["party"], &turn["interrupts"]),
            (&json!(["customer", "agent"][line.party]), &json!(line.interrupts)),
            "{turn:#}"
        );
        assert!(near("start", line.start) && near("end", line.end), "{turn:#} {} {}", line.start, line.end);
    }
    // He is a man, she a woman.
    let pitch = |n: usize| call["parties"][n]["pitch_hz"].as_f64().unwrap();
    assert!((85.0..130.0).contains(&pitch(0)) && (150.0..220.0).contains(&pitch(1)), "{call:#}");
}

/// A journal in this folder, two tenants, a rule.
fn remembering(folder: &std::path::Path) -> Config {
    let mut config = Config { journal: kept(folder).journal, ..quiet() };
    config.server.api_tokens = vec![Secret::new("mine"), Secret::new("other")];
    config.calls.alerts = vec![Rule { name: "leaves".into(), words: vec!["cancel".into()], ..Rule::default() }];
    config
}

const MINE: &str = "Authorization: Bearer mine\r\n";

async fn get(server: &Server, path: &str) -> Value {
    serde_json::from_str(&server.get(path, MINE).await.2).unwrap()
}

async fn end(mut server: Server) {
    server.stop.take().unwrap().send(()).unwrap();
    server.task.await.unwrap().unwrap();
}

/// A call of three turns, and what is told of it when it is over.
async fn spoken(server: &mut Server) -> Value {
    let body = crate::harness::form(Some(&monologue()), &[]);
    let head = format!("{MINE}Content-Type: multipart/form-data; boundary=B\r\n");
    let id = created(&server.send_with("POST", PATH, &head, &body).await.answer().await);
    answer_ears(server, &[["I cancel", " 4711."], ["No", "."], ["Yes", "!"]]).await;
    let mut watch = server.send_with("GET", &format!("{PATH}/{id}/events"), MINE, b"").await;
    watch.until("\"state\":\"ended\"").await;
    get(server, &format!("{PATH}/{id}")).await
}

#[tokio::test]
async fn calls_outlive_the_server_until_they_are_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = serve(remembering(folder.path())).await;
    let before = spoken(&mut server).await;
    assert_eq!(
        (&before["turns"][0]["words"], before["alerts"].as_array().unwrap().len()),
        (&json!("I cancel 4711."), 1)
    );
    let id = before["id"].as_str().unwrap();
    let table = server.get(&format!("{PATH}/{id}?format=csv"), MINE).await.2;
    end(server).await;
    let server = serve(remembering(folder.path())).await;
    assert_eq!(get(&server, &format!("{PATH}/{id}")).await, before, "all of it is as it was");
    assert_eq!(server.get(&format!("{PATH}/{id}?format=csv"), MINE).await.2, table);
    assert_eq!(get(&server, PATH).await["data"][0]["turns"], 3);
    let other = server.get(PATH, "Authorization: Bearer other\r\n").await.2;
    assert!(other.contains("\"data\":[]"), "{other}");
    assert_eq!(server.send_with("DELETE", &format!("{PATH}/{id}"), MINE, b"").await.answer().await.status, 204);
    let file = rusqlite::Connection::open(folder.path().join("journal.sqlite")).unwrap();
    let parts = || file.query_row("SELECT count(*) FROM call_parts", [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(parts(), 0);
    end(server).await;
    let server = serve(remembering(folder.path())).await;
    assert_eq!(get(&server, PATH).await["data"], json!([]));
}

#[tokio::test]
async fn a_call_that_was_cut_off_ends_there_and_one_past_its_hours_goes() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = serve(remembering(folder.path())).await;
    let before = spoken(&mut server).await;
    let path = format!("{PATH}/{}", before["id"].as_str().unwrap());
    end(server).await;
    let file = rusqlite::Connection::open(folder.path().join("journal.sqlite")).unwrap();
    // As a killed server leaves it, and with a turn that only a later version can read.
    file.execute("DELETE FROM call_parts WHERE kind = 'end'", []).unwrap();
    file.execute("UPDATE call_parts SET part = '{\"new\":1}' WHERE kind = 'turn' AND number = 2", []).unwrap();
    let server = serve(remembering(folder.path())).await;
    let call = get(&server, &path).await;
    assert_eq!((&call["state"], call["turns"].as_array().unwrap().len()), (&json!("ended"), 2));
    assert_eq!(call["marks"][0]["name"], "the server was restarted here");
    assert_eq!(call["seconds"], call["turns"][1]["end"]);
    end(server).await;
    file.execute("UPDATE calls SET updated = updated - 31 * 86400000", []).unwrap();
    let server = serve(remembering(folder.path())).await;
    assert_eq!(server.get(&path, MINE).await.0, 404);
    end(server).await;
    let count = || file.query_row("SELECT count(*) FROM calls", [], |row| row.get::<_, i64>(0)).unwrap();
    soon("the deletion", async {
        while count() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn of_more_calls_than_are_kept_the_oldest_goes_and_words_need_not_be_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = remembering(folder.path());
    config.calls.kept = 1;
    config.journal.words = false;
    let mut server = serve(config.clone()).await;
    let first = spoken(&mut server).await;
    let second = spoken(&mut server).await;
    assert_eq!(second["turns"][0]["words"], "I cancel 4711.", "this server knows them");
    assert_eq!(server.get(&format!("{PATH}/{}", first["id"].as_str().unwrap()), MINE).await.0, 404);
    end(server).await;
    let server = serve(config).await;
    let calls = get(&server, PATH).await;
    assert_eq!((calls["data"].as_array().unwrap().len(), &calls["data"][0]["id"]), (1, &second["id"]));
    let call = get(&server, &format!("{PATH}/{}", second["id"].as_str().unwrap())).await;
    assert_eq!((&call["turns"][0]["words"], &call["turns"][0]["start"]), (&json!(""), &second["turns"][0]["start"]));
    assert_eq!(calls["settings"]["recording"], false);
}

/// Five turns of the customer, two seconds apart.
fn monologue() -> Vec<u8> {
    let mut script = Script::new();
    let mut at = 0.5;
    for _ in 0..3 {
        at = script.say(0, at, &clip("0930")) + 2.0;
    }
    script.file(at + 1.0)
}

#[tokio::test]
async fn rules_raise_alerts_and_digits_are_blotted_out() {
    let mut config = quiet();
    config.calls.redact = true;
    config.calls.alerts = vec![
        Rule {
            name: "leaves".into(),
            party: Some("customer".into()),
            words: vec!["cancel".into()],
            times: 2,
            ..Rule::default()
        },
        Rule { name: "dead air".into(), silence_seconds: Some(2.5), ..Rule::default() },
    ];
    let mut server = serve(config).await;
    let sent = server.send_form(PATH, Some(&monologue()), &[]).await;
    let id = created(&sent.answer().await);
    answer_ears(&mut server, &[["I cancel", " 4711."], ["No", "."], ["Cancel", "!"]]).await;
    let mut watch = server.send("GET", &format!("{PATH}/{id}/events"), "", b"").await;
    watch.until("\"state\":\"ended\"").await;
    let call: Value = serde_json::from_str(&server.get(&format!("{PATH}/{id}"), "").await.2).unwrap();
    assert_eq!(call["turns"][0]["words"], "I cancel ••••.");
    let mut alerts: Vec<&str> =
        call["alerts"].as_array().unwrap().iter().map(|a| a["name"].as_str().unwrap()).collect();
    alerts.sort_unstable();
    assert_eq!(alerts, ["dead air", "leaves"], "{call:#}");
}

/// What is posted here next, answered.
async fn posted(receiver: &tokio::net::TcpListener) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (mut socket, _) = soon("the alert", receiver.accept()).await.unwrap();
    let mut text = String::new();
    while !text.contains("\"type\":\"call.alert\"") {
        let mut some = [0; 4096];
        let n = soon("the alert's text", socket.read(&mut some)).await.unwrap();
        assert!(n > 0, "{text}");
        text.push_str(std::str::from_utf8(&some[..n]).unwrap());
    }
    socket.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await.unwrap();
    text
}

#[tokio::test]
async fn alerts_are_posted() {
    let receiver = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = quiet();
    config.calls.webhook = format!("http://{}/alerts", receiver.local_addr().unwrap());
    config.calls.alerts = vec![Rule { name: "leaves".into(), words: vec!["cancel".into()], ..Rule::default() }];
    let mut server = serve(config).await;
    let id = created(&server.send_form(PATH, Some(&monologue()), &[]).await.answer().await);
    answer_ears(&mut server, &[["I cancel", "."]]).await;
    let text = posted(&receiver).await;
    assert!(text.starts_with("POST /alerts ") && text.contains("\"name\":\"leaves\"") && text.contains(&id), "{text}");
}

#[tokio::test]
async fn an_alert_that_nobody_took_is_posted_after_a_restart_and_then_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let config = || {
        let mut config = remembering(folder.path());
        config.calls.webhook = format!("http://{free}/alerts");
        config
    };
    let mut server = serve(config()).await;
    let id = spoken(&mut server).await["id"].as_str().unwrap().to_owned();
    end(server).await;
    let receiver = tokio::net::TcpListener::bind(free).await.unwrap();
    let server = serve(config()).await;
    assert!(posted(&receiver).await.contains(&id));
    // The journal has it before the server has ended.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    end(server).await;
    let _server = serve(config()).await;
    let again = tokio::time::timeout(std::time::Duration::from_millis(500), receiver.accept()).await;
    assert!(again.is_err(), "it was taken");
}

#[tokio::test]
async fn what_is_no_call_is_refused_and_leaves_nothing_behind() {
    let server = serve(quiet()).await;
    let stereo_file = stereo(&clip("0930"), &[]);
    for (file, fields, status, code, param) in [
        (None, &[][..], 400, "missing_required_parameter", Some("file")),
        (Some(&b"nothing"[..]), &[], 400, "invalid_audio", Some("file")),
        (Some(&wav(&clip("0930"))[..]), &[], 400, "invalid_audio", Some("file")),
        (Some(&stereo_file[..]), &[("left", "")], 400, "invalid_value", Some("left")),
    ] {
        let answer = server.send_form(PATH, file, fields).await.answer().await;
        let (found, at) = answer.refusal();
        assert_eq!((answer.status, found.as_str(), at.as_deref()), (status, code, param), "{fields:?}");
    }
    assert!(server.get("/v1/calls", "").await.2.contains("\"data\":[]"));
    for path in ["/v1/calls/none", "/v1/calls/none/events"] {
        assert_eq!(server.get(path, "").await.0, 404);
    }
    // A live call is not forgotten.
    let answer = server.send_form(PATH, Some(&stereo_file), &[]).await.answer().await;
    assert!(!answer.body.contains("-0.0"), "nothing is not less than nothing: {}", answer.body);
    let id = created(&answer);
    assert_eq!(server.send("DELETE", &format!("{PATH}/{id}"), "", b"").await.answer().await.status, 409);
    assert_eq!(server.get(&format!("{PATH}/{id}?format=xml"), "").await.0, 400);
}
