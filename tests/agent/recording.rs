//! Calls whose sound is kept: told, played in ranges, nobody else's, and gone with the call.

use std::path::{Path, PathBuf};

use hearken::audio::file::{self, FileError};
use hearken::config::{Config, Secret};
use serde_json::{Value, json};

use crate::harness::{Server, config, form, noise_f32, serve, soon, stereo, syllables};
use crate::journal::kept;
use crate::telephony::{Phone, both, line};

const MINE: &str = "Authorization: Bearer mine\r\n";
const OTHER: &str = "Authorization: Bearer other\r\n";

fn recording(folder: &Path) -> Config {
    let mut config = Config { journal: kept(folder).journal, ..config() };
    config.server.api_tokens = vec![Secret::new("mine"), Secret::new("other")];
    (config.calls.record, config.calls.notes) = (true, false);
    config
}

/// The left one speaks from 1 to 2 s, the right one from 3 to 4 s.
fn voices() -> [Vec<f32>; 2] {
    [1.0, 3.0].map(|from| noise_f32(6.0, |t| (from..from + 1.0).contains(&t) && syllables(t)))
}

async fn get(server: &Server, path: &str) -> Value {
    serde_json::from_str(&server.get(path, MINE).await.2).unwrap()
}

/// The bytes of an answer, and its head.
async fn sound(server: &Server, path: &str, headers: &str) -> (u16, String, Vec<u8>) {
    use tokio::io::AsyncReadExt as _;
    let mut sent = server.send_with("GET", path, &format!("{MINE}{headers}"), b"").await;
    let mut bytes = Vec::new();
    soon("the answer", sent.0.read_to_end(&mut bytes)).await.unwrap();
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let text = String::from_utf8(bytes[..head].to_vec()).unwrap().to_lowercase();
    (text.split(' ').nth(1).unwrap().parse().unwrap(), text, bytes.split_off(head + 4))
}

/// Both channels of a sound, as far as there are any.
fn lanes(bytes: Vec<u8>) -> [Vec<f32>; 2] {
    let mut all = [Vec::new(), Vec::new()];
    let heard = file::stream_two(bytes, 60.0, &mut |left, right| {
        all[0].extend_from_slice(left);
        all[1].extend_from_slice(right);
        true
    });
    assert!(matches!(heard, Ok(_) | Err(FileError::Empty | FileError::NotAudio(_))), "{heard:?}");
    all
}

/// Whether somebody speaks in this second.
fn speaks(lane: &[f32], second: usize) -> bool {
    let heard = &lane[second * 16_000 + 2000..(second + 1) * 16_000 - 2000];
    (heard.iter().map(|x| x * x).sum::<f32>() / heard.len() as f32).sqrt() > 0.02
}

/// A file that is a call, when it is over.
async fn call_from_file(server: &mut Server) -> String {
    let [left, right] = voices();
    let head = format!("{MINE}Content-Type: multipart/form-data; boundary=B\r\n");
    let body = form(Some(&stereo(&left, &right)), &[]);
    let answer = server.send_with("POST", "/v1/calls", &head, &body).await.answer().await;
    let path = format!("/v1/calls/{}", answer.json()["id"].as_str().unwrap());
    server.opened().await.read(["one", "."]).await;
    server.opened().await.read(["two", "."]).await;
    server.send_with("GET", &format!("{path}/events"), MINE, b"").await.until("\"state\":\"ended\"").await;
    path
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let inside = std::fs::read_dir(folder.join("journal.sounds"));
    inside.map_or_else(|_| Vec::new(), |files| files.map(|file| file.unwrap().path()).collect())
}

async fn end(mut server: Server) {
    server.stop.take().unwrap().send(()).unwrap();
    server.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_recorded_call_says_so_and_is_played_in_ranges_until_it_is_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = serve(recording(folder.path())).await;
    let path = call_from_file(&mut server).await;
    let list = get(&server, "/v1/calls").await;
    assert_eq!((&list["settings"]["recording"], &list["data"][0]["recorded"]), (&json!(true), &json!(true)));
    assert_eq!(get(&server, &path).await["recorded"], true);
    let path = format!("{path}/sound");
    let (status, head, all) = sound(&server, &path, "").await;
    assert!(status == 200 && head.contains("content-type: audio/ogg"), "{head}");
    assert!(
        head.contains("accept-ranges: bytes") && head.contains(&format!("content-length: {}", all.len())),
        "{head}"
    );
    let [left, right] = lanes(all.clone());
    assert_eq!((left.len(), right.len()), (96_000, 96_000));
    for second in 0..6 {
        assert_eq!((speaks(&left, second), speaks(&right, second)), (second == 1, second == 3), "in second {second}");
    }
    let n = all.len();
    for (range, from, to) in [
        ("bytes=0-".to_owned(), 0, n),
        ("bytes=100-199".into(), 100, 200),
        (format!("bytes={}-", n - 5), n - 5, n),
        ("bytes=-7".into(), n - 7, n),
    ] {
        let (status, head, part) = sound(&server, &path, &format!("Range: {range}\r\n")).await;
        assert_eq!((status, &part[..]), (206, &all[from..to]), "{range}");
        assert!(head.contains(&format!("content-range: bytes {from}-{}/{n}", to - 1)), "{head}");
    }
    let (status, head, _) = sound(&server, &path, &format!("Range: bytes={n}-\r\n")).await;
    assert!(status == 416 && head.contains(&format!("content-range: bytes */{n}")), "{head}");
    for (headers, wanted) in [(OTHER, 404), ("", 401)] {
        assert_eq!(server.send_with("GET", &path, headers, b"").await.answer().await.status, wanted);
    }
    // It is there after a restart, and can be heard as a call again.
    end(server).await;
    let mut server = serve(recording(folder.path())).await;
    assert_eq!(sound(&server, &path, "").await.2, all);
    let head = format!("{MINE}Content-Type: multipart/form-data; boundary=B\r\n");
    let again = server.send_with("POST", "/v1/calls", &head, &form(Some(&all), &[])).await.answer().await;
    assert_eq!(again.status, 201, "{again:?}");
    server.opened().await.read(["one", "."]).await;
    // Deleted, it is gone from the disk.
    let own = &folder.path().join(format!("journal.sounds/{}.ogg", path.split('/').nth(3).unwrap()));
    assert!(files(folder.path()).contains(own));
    let path = path.trim_end_matches("/sound");
    assert_eq!(server.send_with("DELETE", path, MINE, b"").await.answer().await.status, 204);
    assert!(!files(folder.path()).contains(own));
}

#[tokio::test]
async fn a_phone_line_that_is_killed_leaves_a_file_of_what_was_heard() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(recording(folder.path())).await;
    let mut phone = Phone::dial(&server).await;
    phone.start(&["inbound", "outbound"], json!({"token": "mine"})).await;
    let [left, right] = voices();
    both(&mut phone, 1, &line(&left), &line(&right)).await;
    // All but what waits for its page is on the disk while the line is still open.
    let heard = soon("five seconds of sound", async {
        loop {
            let bytes = files(folder.path()).first().map(|file| std::fs::read(file).unwrap());
            match lanes(bytes.unwrap_or_default()) {
                heard if heard[0].len() >= 5 * 16_000 => return heard,
                _ => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    for second in 0..5 {
        let found = (speaks(&heard[0], second), speaks(&heard[1], second));
        assert_eq!(found, (second == 1, second == 3), "in second {second}");
    }
    let call = get(&server, "/v1/calls").await;
    assert_eq!((&call["data"][0]["state"], &call["data"][0]["recorded"]), (&json!("live"), &json!(true)));
    // As a killed server leaves it; and a sound whose call nobody knows is not kept.
    let after = tempfile::tempdir().unwrap();
    std::fs::create_dir(after.path().join("journal.sounds")).unwrap();
    for name in ["journal.sqlite", "journal.sqlite-wal"] {
        std::fs::copy(folder.path().join(name), after.path().join(name)).unwrap();
    }
    let file = &files(folder.path())[0];
    for name in [file.file_name().unwrap().to_str().unwrap(), "call_nobody.ogg"] {
        std::fs::copy(file, after.path().join("journal.sounds").join(name)).unwrap();
    }
    let killed = serve(recording(after.path())).await;
    let path = format!("/v1/calls/{}/sound", call["data"][0]["id"].as_str().unwrap());
    let (status, _, bytes) = sound(&killed, &path, "").await;
    assert!(status == 200 && lanes(bytes)[0].len() >= 5 * 16_000);
    let left: Vec<PathBuf> = files(after.path());
    assert_eq!(left.iter().map(|file| file.file_name()).collect::<Vec<_>>(), [file.file_name()]);
}

#[tokio::test]
async fn without_the_setting_nothing_is_kept_and_a_call_past_its_hours_takes_its_sound_along() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = recording(folder.path());
    config.calls.record = false;
    let mut server = serve(config).await;
    let path = call_from_file(&mut server).await;
    assert_eq!(get(&server, &path).await["recorded"], false);
    assert_eq!(sound(&server, &format!("{path}/sound"), "").await.0, 404);
    assert!(!folder.path().join("journal.sounds").exists());
    end(server).await;
    let mut server = serve(recording(folder.path())).await;
    call_from_file(&mut server).await;
    assert_eq!(files(folder.path()).len(), 1);
    end(server).await;
    let journal = rusqlite::Connection::open(folder.path().join("journal.sqlite")).unwrap();
    let old = json!({"ended": 1000, "seconds": 6.0, "skipped": 0, "summary": null}).to_string();
    journal.execute("UPDATE call_parts SET part = ?1 WHERE kind = 'end'", [old]).unwrap();
    let server = serve(recording(folder.path())).await;
    assert_eq!(get(&server, "/v1/calls").await["data"], json!([]));
    soon("the deletion", async {
        while !files(folder.path()).is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
