//! Transcriptions: a file is cut at its pauses, each utterance is read, and the words come back in the form that was asked for.

use hearken::engine::{Caption, Content, Event, Item};
use serde_json::{Value, json};

use crate::harness::{config, listening, noise_f32, serve, soon, speech, syllables, wav};

const PATH: &str = "/v1/audio/transcriptions";

/// Speech from 1 to 3 s and from 5 to 6.5 s of 8.
fn two_utterances() -> Vec<u8> {
    wav(&noise_f32(8.0, |t| ((1.0..3.0).contains(&t) || (5.0..6.5).contains(&t)) && syllables(t)))
}

#[tokio::test]
async fn a_file_is_read_in_utterances_and_told_in_every_form() {
    let mut server = serve(config()).await;
    for form in ["json", "text", "verbose_json", "srt", "vtt"] {
        let sent =
            server.send_form(PATH, Some(&two_utterances()), &[("model", "whisper-1"), ("response_format", form)]).await;
        let mut fed = Vec::new();
        for words in [["Good", " morning."], [" It rains", "."]] {
            let opened = server.opened().await;
            assert!(opened.listen.captions);
            opened.read(words).await;
            fed.push(opened.fed.samples.lock().unwrap().len());
        }
        // With what is kept before and after, and three seconds of silence.
        assert!((80_000..90_000).contains(&fed[0]) && (72_000..82_000).contains(&fed[1]), "{fed:?}");
        let answer = sent.answer().await;
        assert_eq!(answer.status, 200);
        match form {
            "json" => {
                let usage = json!({"type": "duration", "seconds": 8.0});
                assert_eq!(answer.json(), json!({"text": "Good morning. It rains.", "usage": usage}));
            }
            "text" => assert_eq!(answer.body, "Good morning. It rains.\n"),
            "verbose_json" => {
                let whole = answer.json();
                assert_eq!((&whole["duration"], &whole["text"]), (&json!(8.0), &json!("Good morning. It rains.")));
                let segments = whole["segments"].as_array().unwrap();
                for (segment, (text, start, end)) in
                    segments.iter().zip([("Good morning.", 1.0, 3.0), ("It rains.", 5.0, 6.5)])
                {
                    assert_eq!(segment["text"], text);
                    let near = |key: &str, at: f64| (segment[key].as_f64().unwrap() - at).abs() < 0.45;
                    assert!(near("start", start) && near("end", end), "{segment}");
                }
                assert_eq!(segments.len(), 2);
            }
            "srt" => assert!(
                answer.body.starts_with("1\n00:00:00,") && answer.body.contains("\n2\n00:00:04,"),
                "{}",
                answer.body
            ),
            _ => {
                assert!(answer.head.contains("text/vtt"));
                assert!(answer.body.starts_with("WEBVTT\n\n1\n00:00:00."), "{}", answer.body);
            }
        }
    }
}

#[tokio::test]
async fn a_streamed_one_tells_the_words_as_they_are_read() {
    let mut server = serve(config()).await;
    let mut sent = server.send_form(PATH, Some(&two_utterances()), &[("stream", "true")]).await;
    let first = server.opened().await;
    first.read(["Good", " morning."]).await;
    // Before the second utterance is read.
    sent.until("morning.").await;
    let second = server.opened().await;
    second.read([" It rains", "."]).await;
    let rest = sent.until("transcript.text.done").await;
    let told: Vec<Value> = rest
        .split("\n\n")
        .filter_map(|event| event.strip_prefix("data: "))
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    let deltas: Vec<&str> = told.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(deltas, [" It rains", "."]);
    assert_eq!(told.last().unwrap()["text"], "Good morning. It rains.");
}

#[tokio::test]
async fn without_an_ear_for_words_the_model_itself_is_asked() {
    let mut server = serve(config()).await;
    let sound = wav(&noise_f32(3.0, |t| (1.0..2.0).contains(&t) && syllables(t)));
    let sent = server.send_form(PATH, Some(&sound), &[]).await;
    let opened = server.opened().await;
    drop(opened);
    let asked = server.asked().await;
    let Item::Message { content, .. } = &asked.request.conversation[0] else { panic!() };
    let [Content::Sound(heard), Content::Text(question)] = &content[..] else { panic!("{content:?}") };
    assert!((16_000..26_000).contains(&heard.len()), "{}", heard.len());
    assert_eq!(question, "\nTranscribe the speech.");
    asked.say(Event::Reply("Good morning.".into())).await;
    asked.done().await;
    assert_eq!(sent.answer().await.json()["text"], "Good morning.");
}

/// Speech from the first sample to the last, real, with the detector that is the default.
#[tokio::test]
async fn a_file_that_ends_with_its_last_word_is_heard_to_its_end() {
    let mut server = serve(listening()).await;
    let clip = speech("sense_and_sensibility_01_austen_64kb-0930.wav");
    let sent = server.send_form(PATH, Some(&wav(&clip)), &[]).await;
    let opened = server.opened().await;
    opened.read(["He might", " even."]).await;
    assert_eq!(sent.answer().await.json()["text"], "He might even.");
}

#[tokio::test]
async fn silence_has_no_words_and_costs_no_engine() {
    let mut server = serve(config()).await;
    let sent = server.send_form(PATH, Some(&wav(&vec![0.0; 32_000])), &[]).await;
    assert_eq!(sent.answer().await.json()["text"], "");
    assert!(server.opened.try_recv().is_err());
}

#[tokio::test]
async fn a_long_speech_is_cut_into_segments_that_the_encoder_takes() {
    let mut server = serve(config()).await;
    let sent =
        server.send_form(PATH, Some(&wav(&noise_f32(62.0, |t| (1.0..61.0).contains(&t) && syllables(t)))), &[]).await;
    let mut fed = Vec::new();
    for _ in 0..3 {
        let opened = server.opened().await;
        opened.read(["a", "b"]).await;
        fed.push(opened.fed.samples.lock().unwrap().len());
    }
    assert_eq!(sent.answer().await.json()["text"], "ab ab ab");
    // 25 s and the silence, of which an ear takes what it has room for.
    assert!(fed.iter().all(|n| *n <= 448_000) && fed.iter().sum::<usize>() > 950_000, "{fed:?}");
}

#[tokio::test]
async fn a_client_that_vanishes_ends_the_reading() {
    for stream in ["true", "false"] {
        let mut server = serve(config()).await;
        let mut sent = server.send_form(PATH, Some(&two_utterances()), &[("stream", stream)]).await;
        let opened = server.opened().await;
        if stream == "true" {
            let caption = Caption { committed: "Good".into(), ..Caption::default() };
            opened.captions.send(caption).await.unwrap();
            sent.until("Good").await;
        }
        drop(sent);
        soon("the end of the ear", opened.captions.closed()).await;
        soon("the closing", server.closed.recv()).await;
        assert!(server.opened.try_recv().is_err());
    }
}

#[tokio::test]
async fn what_cannot_be_obeyed_is_refused_by_name() {
    let mut config = config();
    config.http.max_body_bytes = 400_000;
    config.limits.file_seconds = 5.0;
    let server = serve(config).await;
    let short = wav(&noise_f32(1.0, |_| true));
    let long = wav(&noise_f32(6.0, |_| false));
    for (file, fields, status, code, param) in [
        (None, &[("model", "x")][..], 400, "missing_required_parameter", Some("file")),
        (Some(&b"no sound at all"[..]), &[], 400, "invalid_audio", Some("file")),
        (Some(&long[..]), &[], 400, "invalid_audio", Some("file")),
        (Some(&[7; 500_000][..]), &[], 413, "request_too_large", None),
        (Some(&short[..]), &[("response_format", "xml")], 400, "invalid_value", Some("response_format")),
        (
            Some(&short[..]),
            &[("timestamp_granularities[]", "word")],
            400,
            "invalid_value",
            Some("timestamp_granularities[]"),
        ),
        (Some(&short[..]), &[("stream", "perhaps")], 400, "invalid_value", Some("stream")),
    ] {
        let answer = server.send_form(PATH, file, fields).await.answer().await;
        let (found, at) = answer.refusal();
        assert_eq!((answer.status, found.as_str(), at.as_deref()), (status, code, param), "{fields:?}");
    }
    for (content_type, body) in [
        ("application/json", &b"{}"[..]),
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=B", b"--B\r\nrubbish"),
    ] {
        let answer = server.send("POST", PATH, content_type, body).await.answer().await;
        assert!(answer.status == 400 || answer.status == 415, "{answer:?}");
        assert_eq!(answer.refusal().0, "invalid_body", "{content_type}");
    }
}
