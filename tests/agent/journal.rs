//! The journal: what clients were told is kept, found again, gone on with, and deleted.

use std::path::Path;

use hearken::config::{Config, Secret};
use hearken::engine::{Content, Event, Item, Role};
use serde_json::{Value, json};

use crate::harness::{Client, Server, config, done, noise, serve, syllables};

/// The harness's configuration, with a journal in this folder.
pub fn kept(folder: &Path) -> Config {
    let mut config = config();
    config.journal.enabled = true;
    config.journal.path = Some(folder.join("journal.sqlite"));
    config
}

/// A typed turn to its end.
async fn turn(server: &mut Server, client: &mut Client, question: &str, answer: &str) -> Vec<Value> {
    client.say(question).await;
    client.send(json!({"type": "response.create"})).await;
    let asked = server.asked().await;
    asked.say(Event::Reasoning("Hm.".into())).await;
    asked.say(Event::Reply(answer.into())).await;
    asked.done().await;
    until(client, "response.done").await
}

/// Events up to the first of this type.
pub async fn until(client: &mut Client, kind: &str) -> Vec<Value> {
    let mut events = Vec::new();
    loop {
        events.push(client.event().await);
        if events.last().unwrap()["type"] == kind {
            return events;
        }
    }
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

async fn json(server: &Server, path: &str) -> Value {
    let (status, _, body) = server.get(path, "").await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

fn message(role: Role, text: &str) -> Item {
    Item::Message { role, content: vec![Content::Text(text.into())] }
}

/// Cuts the connection without a word.
fn cut(client: Client) {
    drop(client.socket);
}

#[tokio::test]
async fn a_conversation_is_listed_found_read_exported_and_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = serve(kept(folder.path())).await;
    let mut client = server.connect().await;
    turn(&mut server, &mut client, "What is 100 % of <six>?", "Six & nothing else.").await;
    let mut other = server.connect().await;
    turn(&mut server, &mut other, "Good evening.", "Good evening to you.").await;
    drop(server.connect().await);

    let all = json(&server, "/v1/conversations").await;
    let titles: Vec<&str> = all["data"].as_array().unwrap().iter().map(|c| c["title"].as_str().unwrap()).collect();
    assert_eq!(
        titles,
        ["Good evening.", "What is 100 % of <six>?"],
        "the newest first, and none in which nothing was said"
    );
    assert_eq!(all["has_more"], false);
    let page = json(&server, "/v1/conversations?limit=1").await;
    assert_eq!((page["data"].as_array().unwrap().len(), &page["has_more"]), (1, &json!(true)));
    let last = page["data"][0]["id"].as_str().unwrap();
    assert_eq!(json(&server, &format!("/v1/conversations?after={last}")).await["data"][0]["title"], titles[1]);
    for (search, found) in [("NOTHING%20else", 1), ("good", 1), ("0%20%25", 1), ("%25", 1), ("_", 0), ("Hm", 0)] {
        let list = json(&server, &format!("/v1/conversations?search={search}")).await;
        assert_eq!(list["data"].as_array().unwrap().len(), found, "{search}");
    }

    let id = all["data"][1]["id"].as_str().unwrap().to_owned();
    let read = json(&server, &format!("/v1/conversations/{id}")).await;
    let [question, answer] = &read["turns"].as_array().unwrap()[..] else { panic!("{read}") };
    assert_eq!((&question["who"], &question["words"]), (&json!("user"), &json!("What is 100 % of <six>?")));
    assert_eq!((&answer["who"], &answer["words"]), (&json!("agent"), &json!("Six & nothing else.")));
    assert_eq!(answer["status"], "completed");
    let (_, head, vtt) = server.get(&format!("/v1/conversations/{id}.vtt"), "").await;
    assert!(head.contains("text/vtt") && vtt.starts_with("WEBVTT\n\n00:00:00.0"), "{head}{vtt}");
    assert!(vtt.contains("<v You>What is 100 % of &lt;six&gt;?") && vtt.contains("<v Hearken>Six &amp; nothing else."));
    let (_, _, srt) = server.get(&format!("/v1/conversations/{id}.srt"), "").await;
    assert!(srt.starts_with("1\n00:00:00,0") && srt.contains("Hearken: Six & nothing else.\n\n"), "{srt}");
    let (_, _, text) = server.get(&format!("/v1/conversations/{id}.txt"), "").await;
    assert!(text.contains("] You: What is 100 %") && text.contains("] Hearken: Six"), "{text}");
    let whole = json(&server, &format!("/v1/conversations/{id}.json")).await;
    assert_eq!(whole["turns"], read["turns"]);
    assert_eq!(server.get(&format!("/v1/conversations/{id}.pdf"), "").await.0, 404);

    let (status, _, _) = server.request("DELETE", &format!("/v1/conversations/{id}"), "", "").await;
    assert_eq!(status, 200);
    let goodbye = client.close_frame().await.unwrap();
    assert_eq!(goodbye.reason.as_str(), "the conversation has ended", "though nobody could have come back to it");
    assert_eq!(server.get(&format!("/v1/conversations/{id}"), "").await.0, 404);
    assert_eq!(json(&server, "/v1/conversations").await["data"].as_array().unwrap().len(), 1);
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(12).any(|part| part == b"nothing else"), "what was deleted is gone from the file");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn nobody_else_may_read_the_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let server = serve(kept(folder.path())).await;
    drop(server.connect().await);
    let mut files = 0;
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let mode = file.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
        files += 1;
    }
    assert!(files >= 2, "the log is looked at as well");
}

#[tokio::test]
async fn tenants_see_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = kept(folder.path());
    config.server.api_tokens = vec![Secret::new("one"), Secret::new("two")];
    let mut server = serve(config).await;
    let mut client = server.resume_with("", "0", &[("authorization", "Bearer one")]).await.unwrap();
    let created = client.expect("session.created").await;
    let token = created["session"]["resume"]["token"].as_str().unwrap().to_owned();
    turn(&mut server, &mut client, "A secret.", "Kept.").await;
    let id = created["session"]["resume"]["conversation_id"].as_str().unwrap();
    for (who, status, count) in [("one", 200, 1), ("two", 404, 0)] {
        let header = format!("Authorization: Bearer {who}\r\n");
        let (_, _, list) = server.get("/v1/conversations", &header).await;
        let list: Value = serde_json::from_str(&list).unwrap();
        assert_eq!(list["data"].as_array().unwrap().len(), count);
        for path in ["", ".txt", "/events"] {
            assert_eq!(server.get(&format!("/v1/conversations/{id}{path}"), &header).await.0, status);
        }
    }
    let stolen = server.resume_with(&token, "0", &[("authorization", "Bearer two")]).await;
    assert!(stolen.err().unwrap().to_string().contains("404"));
    let (status, _, _) =
        server.request("DELETE", &format!("/v1/conversations/{id}"), "Authorization: Bearer two\r\n", "").await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn a_lost_connection_loses_nothing_while_the_reply_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = serve(kept(folder.path())).await;
    let mut client = server.resume("", "").await;
    let created = client.expect("session.created").await;
    let resume = created["session"]["resume"].clone();
    assert_eq!(resume["seconds"], 120);
    client.update(json!({"type": "realtime", "include": ["reasoning.text"]})).await;
    client.say("Tell me all.").await;
    client.send(json!({"type": "response.create"})).await;
    let asked = server.asked().await;
    asked.say(Event::Reply("First ".into())).await;
    let before = until(&mut client, "response.output_text.delta").await;
    let last = before.last().unwrap()["event_id"].as_str().unwrap().to_owned();
    cut(client);
    asked.say(Event::Reply("second ".into())).await;

    let mut client = server.resume(resume["token"].as_str().unwrap(), &last).await;
    let missed = until(&mut client, "session.created").await;
    let told: Vec<&Value> = missed.iter().filter(|event| event["type"] == "response.output_text.delta").collect();
    // What came before the client did was missed; what comes after it is told as ever.
    asked.say(Event::Reply("third.".into())).await;
    asked.say(done()).await;
    let rest = until(&mut client, "response.done").await;
    let deltas: String = told
        .into_iter()
        .chain(rest.iter().filter(|event| event["type"] == "response.output_text.delta"))
        .map(|event| event["delta"].as_str().unwrap())
        .collect();
    assert_eq!(deltas, "second third.");
    assert_eq!(rest.last().unwrap()["response"]["output"][0]["content"][0]["text"], "First second third.");
    let numbers: Vec<u64> = before.iter().chain(&missed).chain(&rest).map(number).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "each event once and in order: {numbers:?}");
    let greeting = missed.last().unwrap();
    assert_eq!(greeting["session"]["id"], created["session"]["id"]);
    assert_eq!(greeting["session"]["include"], json!(["reasoning.text"]), "what was set holds");

    // The same session: its prefix is found again.
    client.say("And then?").await;
    client.send(json!({"type": "response.create"})).await;
    let asked_again = server.asked().await;
    assert_eq!(asked_again.request.session, asked.request.session);
    assert_eq!(asked_again.request.conversation.len(), 3);
    let (_, _, metrics) = server.get("/metrics", "").await;
    assert!(metrics.contains("hearken_sessions_resumed_total 1\n") && metrics.contains("hearken_sessions_total 1\n"));
}

pub fn number(event: &Value) -> u64 {
    event["event_id"].as_str().unwrap().rsplit('_').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn nobody_goes_on_beside_a_session_that_cannot_be_come_back_to() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = serve(kept(folder.path())).await;
    let mut client = server.connect().await;
    turn(&mut server, &mut client, "My name is Ada.", "Hello Ada.").await;
    let all = json(&server, "/v1/conversations").await;
    let id = all["data"][0]["id"].as_str().unwrap().to_owned();
    let token = json(&server, &format!("/v1/conversations/{id}")).await["resume"]["token"].as_str().unwrap().to_owned();
    let mut other = server.resume(&token, "0").await;
    assert_eq!(u16::from(other.close_frame().await.unwrap().code), 1012, "it is told to come again");
    turn(&mut server, &mut client, "And yours?", "Hearken.").await;
}

#[tokio::test]
async fn what_a_session_began_with_holds_after_the_server_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let config = || {
        let mut config = kept(folder.path());
        config.server.api_tokens = vec![Secret::new("sesame")];
        config
    };
    let mut server = serve(config()).await;
    let wish = json!({"session": {"type": "realtime", "instructions": "Be brief."}});
    let minter = "Authorization: Bearer sesame\r\n";
    let (_, minted) = server.post("/v1/realtime/client_secrets", minter, wish).await;
    let key = format!("Bearer {}", minted["value"].as_str().unwrap());
    let mut client = server.resume_with("", "0", &[("authorization", &key)]).await.unwrap();
    let created = client.expect("session.created").await;
    let token = created["session"]["resume"]["token"].as_str().unwrap().to_owned();
    turn(&mut server, &mut client, "My name is Ada.", "Hello Ada.").await;
    server.stop.take().unwrap().send(()).unwrap();
    client.close_frame().await;
    server.task.await.unwrap().unwrap();

    let server = serve(config()).await;
    let mut client = server.resume_with(&token, "0", &[("authorization", "Bearer sesame")]).await.unwrap();
    until(&mut client, "conversation.item.done").await;
    let created = until(&mut client, "session.created").await;
    assert_eq!(created.last().unwrap()["session"]["instructions"], "Be brief.");
}

#[tokio::test]
async fn a_conversation_goes_on_after_the_server_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = serve(kept(folder.path())).await;
    let mut client = server.resume("", "").await;
    let token = client.expect("session.created").await["session"]["resume"]["token"].as_str().unwrap().to_owned();
    client
        .update(json!({"type": "realtime", "instructions": "Be kind.", "audio": {"input": {"turn_detection": null}}}))
        .await;
    let events = turn(&mut server, &mut client, "My name is Ada.", "Hello Ada.").await;
    let last = number(events.last().unwrap());
    // A response is under way, and some of it was told.
    client.say("What is my name?").await;
    client.send(json!({"type": "response.create"})).await;
    let asked = server.asked().await;
    asked.say(Event::Reply("Your name".into())).await;
    let told = until(&mut client, "response.output_text.delta").await;
    server.stop.take().unwrap().send(()).unwrap();
    client.close_frame().await;
    server.task.await.unwrap().unwrap();

    let mut server = serve(kept(folder.path())).await;
    let mut client = server.resume(&token, &last.to_string()).await;
    let missed = until(&mut client, "session.created").await;
    // Pieces of a reply need not be told again where its whole text is.
    let whole = |events: Vec<Value>| -> Vec<Value> {
        events.into_iter().filter(|event| event["type"] != "response.output_text.delta").collect()
    };
    let (missed, told) = (whole(missed), whole(told));
    // The question was told before.
    let (old, new) = missed.split_at(2 + told.len());
    assert_eq!(old[2..], told, "what was told is told again as it was");
    assert_eq!(kinds(new), ["conversation.item.done", "response.done", "session.created"]);
    assert_eq!(new[0]["item"]["content"][0]["text"], "Your name");
    assert_eq!(new[1]["response"]["status_details"]["error"]["code"], "server_restarted");
    assert_eq!(new[1]["response"]["output"][0]["status"], "incomplete");
    assert_eq!(new[2]["session"]["instructions"], "Be kind.");
    assert_eq!(new[2]["session"]["audio"]["input"]["turn_detection"], Value::Null);
    client.send(json!({"type": "response.create"})).await;
    let asked = server.asked().await;
    let conversation = [
        message(Role::System, "Be kind."),
        message(Role::User, "My name is Ada."),
        message(Role::Assistant, "Hello Ada."),
        message(Role::User, "What is my name?"),
        message(Role::Assistant, "Your name"),
    ];
    assert_eq!(asked.request.conversation, conversation);
    asked.say(Event::Reply(" is Ada.".into())).await;
    asked.done().await;
    let rest = until(&mut client, "response.done").await;
    let numbers: Vec<u64> = missed.iter().chain(&rest).map(number).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "no number is given twice: {numbers:?}");
    let mut names: Vec<&str> = rest.iter().filter_map(|event| event["response"]["id"].as_str()).collect();
    names.extend(old.iter().filter_map(|event| event["response"]["id"].as_str()));
    names.dedup();
    assert_eq!(names.len(), 2, "no name is given twice: {names:?}");
}

#[tokio::test]
async fn words_that_were_told_while_somebody_spoke_are_kept_as_a_turn() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = serve(kept(folder.path())).await;
    let mut client = server.resume("", "").await;
    let token = client.expect("session.created").await["session"]["resume"]["token"].as_str().unwrap().to_owned();
    let input = json!({"format": {"type": "audio/pcm", "rate": 16000}});
    client.update(json!({"type": "realtime", "audio": {"input": input}})).await;
    client.raw(tokio_tungstenite::tungstenite::Message::binary(noise(1.5, syllables))).await;
    client.expect("input_audio_buffer.speech_started").await;
    let opened = server.opened().await;
    opened
        .captions
        .send(hearken::engine::Caption { committed: "I was saying".into(), ..Default::default() })
        .await
        .unwrap();
    let delta = client.expect("conversation.item.input_audio_transcription.delta").await;
    server.stop.take().unwrap().send(()).unwrap();
    client.close_frame().await;
    server.task.await.unwrap().unwrap();

    let mut server = serve(kept(folder.path())).await;
    let mut client = server.resume(&token, delta["event_id"].as_str().unwrap()).await;
    let missed = until(&mut client, "session.created").await;
    let last = &missed[missed.len() - 2];
    assert_eq!(last["type"], "conversation.item.input_audio_transcription.completed");
    assert_eq!((&last["item_id"], &last["transcript"]), (&delta["item_id"], &json!("I was saying")));
    client.send(json!({"type": "response.create"})).await;
    assert_eq!(server.asked().await.request.conversation, [message(Role::User, "I was saying")]);
}

#[tokio::test]
async fn a_conversation_is_in_one_place_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(kept(folder.path())).await;
    let mut first = server.resume("", "").await;
    let token = first.expect("session.created").await["session"]["resume"]["token"].as_str().unwrap().to_owned();
    let mut second = server.resume(&token, "1").await;
    second.expect("session.created").await;
    let close = first.close_frame().await.unwrap();
    assert_eq!(close.reason.as_str(), "the conversation goes on in another place");
    second.say("Here.").await;
}

#[tokio::test]
async fn only_what_can_be_gone_on_with_is() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(kept(folder.path())).await;
    let mut plain = server.connect().await;
    assert!(plain.session.get("resume").is_none(), "only for those who ask");
    plain.say("Hello.").await;
    let mut client = server.resume("", "").await;
    let token = client.expect("session.created").await["session"]["resume"]["token"].as_str().unwrap().to_owned();
    let (name, seal) = token.split_once('.').unwrap();
    let other = if seal.starts_with('0') { "1" } else { "0" };
    for wrong in ["x", "conv_1.0", name, &format!("{name}.{other}{}", &seal[1..]), &format!("{name}x.{seal}")] {
        let refused = server.resume_with(wrong, "0", &[]).await;
        assert!(refused.err().unwrap().to_string().contains("404"), "{wrong}");
    }
    // Who says goodbye does not mean to come back at once; the conversation can still be gone on with.
    client.say("Bye.").await;
    client.socket.close(None).await.unwrap();
    client.close_frame().await;
    let mut again = server.resume(&token, "").await;
    let missed = until(&mut again, "session.created").await;
    assert_eq!(kinds(&missed), ["conversation.item.added", "conversation.item.done", "session.created"]);
}

#[tokio::test]
async fn what_is_to_be_blotted_out_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = kept(folder.path());
    config.journal.redact = vec![r"\d{4,}".into()];
    let mut server = serve(config.clone()).await;
    let mut client = server.connect().await;
    let told = turn(&mut server, &mut client, "My number is 4111222.", "4111222, I see.").await;
    assert!(told.iter().any(|event| event["delta"] == "4111222, I see."), "the client itself is told all");
    let list = json(&server, "/v1/conversations").await;
    assert_eq!(list["data"][0]["title"], "My number is ▇.");
    let read = json(&server, &format!("/v1/conversations/{}", list["data"][0]["id"].as_str().unwrap())).await;
    assert_eq!(read["turns"][1]["words"], "▇, I see.");
    config.journal.redact = vec!["(".into()];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refused =
        hearken::transport::serve(listener, config.into(), server.engine.clone(), std::future::ready(())).await;
    assert!(refused.unwrap_err().to_string().contains("journal.redact"));
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(7).any(|part| part == b"4111222"));
    }
}

#[tokio::test]
async fn without_words_there_is_nothing_to_go_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = kept(folder.path());
    config.journal.words = false;
    let mut server = serve(config).await;
    let mut client = server.resume("", "").await;
    assert!(client.expect("session.created").await["session"].get("resume").is_none());
    turn(&mut server, &mut client, "Unheard.", "Unsaid.").await;
    assert_eq!(json(&server, "/v1/conversations").await["data"], json!([]));
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(6).any(|part| part == b"Unsaid" || part == b"Unhear"));
    }
}

#[tokio::test]
async fn what_is_past_its_days_goes_when_the_server_starts() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = serve(kept(folder.path())).await;
    let mut client = server.connect().await;
    turn(&mut server, &mut client, "Long ago.", "Yes.").await;
    drop(client);
    let file = rusqlite::Connection::open(folder.path().join("journal.sqlite")).unwrap();
    let day = 86_400_000_i64;
    file.execute("UPDATE conversations SET updated = updated - 31 * ?1", [day]).unwrap();
    server.stop.take().unwrap().send(()).unwrap();
    server.task.await.unwrap().unwrap();
    let server = serve(kept(folder.path())).await;
    assert_eq!(json(&server, "/v1/conversations").await["data"], json!([]));
    assert_eq!(file.query_row("SELECT count(*) FROM events", [], |row| row.get::<_, i64>(0)).unwrap(), 0);
}

#[tokio::test]
async fn a_journal_of_a_newer_program_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let config = kept(folder.path());
    let file = rusqlite::Connection::open(folder.path().join("journal.sqlite")).unwrap();
    file.pragma_update(None, "user_version", 99).unwrap();
    let server = serve(config).await;
    let error = server.task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("version 99"), "{error}");
}

#[tokio::test]
async fn the_end_of_a_reply_waits_for_nobody_when_the_journal_is_stuck() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = kept(folder.path());
    config.limits.send_queue = 32;
    let mut server = serve(config).await;
    let mut client = server.connect().await;
    client.say("Hello.").await;
    client.send(json!({"type": "response.create"})).await;
    let asked = server.asked().await;
    client.expect("response.created").await;
    // Another process holds the file.
    let file = rusqlite::Connection::open(folder.path().join("journal.sqlite")).unwrap();
    file.execute_batch("BEGIN IMMEDIATE").unwrap();
    for _ in 0..40 {
        asked.say(Event::Reply("word ".into())).await;
    }
    // More than may wait is sent before it is safe, and counted.
    for _ in 0..8 {
        client.event().await;
    }
    let (_, _, metrics) = server.get("/metrics", "").await;
    let late = metrics.lines().find_map(|line| line.strip_prefix("hearken_journal_late_total ")).unwrap();
    assert!(late.parse::<u64>().unwrap() > 0, "{metrics}");
    file.execute_batch("ROLLBACK").unwrap();
    asked.say(done()).await;
    until(&mut client, "response.done").await;
}
