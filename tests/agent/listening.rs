//! The session listens while somebody speaks: what its ear is fed, what it thinks ahead, what captions become, and how it stays small.

use std::time::Duration;

use hearken::config::Config;
use hearken::engine::{Content, Event, Item, Pace, Request, Role};
use hearken::session::Input;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::desk::Desk;
use crate::harness::{config, noise_f32, syllables};

const SPEECH_STOPPED: &str = "input_audio_buffer.speech_stopped";
const WORDS: &str = "conversation.item.input_audio_transcription.completed";
const WORDS_DELTA: &str = "conversation.item.input_audio_transcription.delta";

/// All sound of a request's last item, and all sound of the items before.
fn sound_of(request: &Request) -> (Vec<f32>, usize) {
    let sounds = |item: &Item| match item {
        Item::Message { content, .. } => content
            .iter()
            .flat_map(|c| if let Content::Sound(s) = c { s.to_vec() } else { vec![] })
            .collect::<Vec<f32>>(),
        _ => vec![],
    };
    let (last, before) = request.conversation.split_last().unwrap();
    (sounds(last), before.iter().map(|item| sounds(item).len()).sum())
}

fn texts_of(item: &Item) -> Vec<&str> {
    match item {
        Item::Message { content, .. } => {
            content.iter().filter_map(|c| if let Content::Text(t) = c { Some(&t[..]) } else { None }).collect()
        }
        _ => vec![],
    }
}

fn hear_in_packets(desk: &mut Desk, sound: &[f32]) {
    sound.chunks(320).for_each(|packet| desk.hear(packet));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// I1: the ears of a turn are fed its very samples, whatever the packet sizes, so that the request finds them heard.
    #[test]
    fn i1_the_ear_is_fed_what_the_turn_will_be(sizes in prop::collection::vec(1_usize..9_000, 1..30), long in any::<bool>()) {
        let speech = if long { 31.0 } else { 2.3 };
        let sound = noise_f32(speech + 2.0, |t| (0.7..speech).contains(&t) && syllables(t));
        let mut desk = Desk::new(config());
        let (mut rest, mut sizes) = (&sound[..], sizes.into_iter().cycle());
        while !rest.is_empty() {
            let (packet, after) = rest.split_at(sizes.next().unwrap().min(rest.len()));
            desk.hear(packet);
            rest = after;
        }
        prop_assert_eq!(desk.all(SPEECH_STOPPED).len(), 1);
        let (_, request) = desk.started.last().unwrap();
        let (turn, _) = sound_of(request);
        let fed: Vec<f32> = desk.ears.iter().flat_map(|ear| ear.heard.clone()).collect();
        prop_assert_eq!(&fed, &turn);
        prop_assert_eq!(desk.ears.len(), if long { 2 } else { 1 });
        prop_assert!(desk.ears.iter().all(|ear| ear.dropped || ear.listen.conversation.len() == 1));
        // A segment that is full is sound of the conversation when the next one begins.
        if let [_, second] = &desk.ears[..] {
            let Item::Message { content, role: Role::User } = &second.listen.conversation[0] else { panic!() };
            prop_assert_eq!(&content[0], &Content::Sound(turn[..400_000].into()));
            prop_assert_eq!(&content[1], &Content::Sound([].into()));
        }
    }
}

#[test]
fn a_mind_that_began_at_the_pause_answers_at_once() {
    let mut desk = Desk::new(config());
    // Speech until 1.5 s; the pause is told 200 ms later, the end 500 ms.
    hear_in_packets(&mut desk, &noise_f32(1.8, |t| (0.5..1.5).contains(&t)));
    assert_eq!(desk.started.len(), 1, "it thinks");
    assert_eq!(desk.kinds(), ["input_audio_buffer.speech_started"], "and says nothing");
    desk.engine(Event::Heard("the words".into()));
    desk.engine(Event::Reply("the reply".into()));
    assert_eq!(desk.kinds(), Vec::<String>::new());
    hear_in_packets(&mut desk, &noise_f32(0.4, |_| false));
    assert_eq!(desk.started.len(), 1);
    assert_eq!(desk.cancelled, []);
    let kinds = desk.kinds();
    assert_eq!(
        kinds[..5],
        [
            SPEECH_STOPPED,
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
            "response.created",
        ]
    );
    assert_eq!(kinds[5], WORDS);
    assert_eq!(kinds.last().unwrap(), "response.output_text.delta");
    desk.done();
    assert_eq!(desk.kinds().last().unwrap(), "response.done");
}

#[test]
fn speech_that_goes_on_drops_what_was_thought_too_early() {
    let mut desk = Desk::new(config());
    hear_in_packets(&mut desk, &noise_f32(1.8, |t| (0.5..1.5).contains(&t)));
    let (early, request) = desk.started[0].clone();
    desk.engine(Event::Reply("too early".into()));
    hear_in_packets(&mut desk, &noise_f32(1.5, |t| t < 0.7));
    assert_eq!(desk.cancelled, [early]);
    assert_eq!(desk.started.len(), 2);
    let (before, after) = (sound_of(&request).0, sound_of(&desk.started[1].1).0);
    assert!(after.len() > before.len() && after.starts_with(&before), "the same turn, longer");
    assert!(!desk.told.iter().any(|e| e.to_string().contains("too early")));
    assert_eq!(desk.all("response.created").len(), 1);
}

#[test]
fn what_changes_the_conversation_drops_what_was_thought_ahead() {
    let mut desk = Desk::new(config());
    hear_in_packets(&mut desk, &noise_f32(1.8, |t| (0.5..1.5).contains(&t)));
    let early = desk.started[0].0;
    let item = json!({"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Be brief."}]});
    desk.client(json!({"type": "conversation.item.create", "item": item}));
    assert_eq!(desk.cancelled, [early]);
    hear_in_packets(&mut desk, &noise_f32(0.4, |_| false));
    assert_eq!(desk.started.len(), 2);
    assert_eq!(desk.started[1].1.conversation.len(), 2);
}

#[test]
fn speculation_can_be_switched_off() {
    let mut config = config();
    config.thinking.speculate = false;
    let mut desk = Desk::new(config);
    hear_in_packets(&mut desk, &noise_f32(1.8, |t| (0.5..1.5).contains(&t)));
    assert!(desk.started.is_empty());
    hear_in_packets(&mut desk, &noise_f32(0.4, |_| false));
    assert_eq!(desk.started.len(), 1);
}

#[test]
fn i7_captions_join_to_what_is_completed_and_tentative_ones_are_asked_for() {
    for told in [false, true] {
        let mut desk = Desk::new(config());
        if told {
            let include = json!(["hearken.captions.tentative"]);
            desk.client(json!({"type": "session.update", "session": {"include": include}}));
        }
        hear_in_packets(&mut desk, &noise_f32(2.0, |t| t > 0.5 && syllables(t)));
        assert!(desk.ears[0].listen.captions);
        desk.caption("What was", "said so");
        desk.caption(" said", "here");
        hear_in_packets(&mut desk, &noise_f32(0.8, |_| false));
        // The last reading sees it otherwise: what was told stays.
        desk.engine(Event::Heard("What is said here".into()));
        let item = &desk.all("input_audio_buffer.speech_started")[0]["item_id"];
        let deltas = desk.all(WORDS_DELTA);
        assert!(deltas.iter().all(|delta| delta["item_id"] == *item));
        let joined: String = deltas.iter().map(|delta| delta["delta"].as_str().unwrap()).collect();
        assert_eq!(joined, "What was said here");
        assert_eq!(desk.all(WORDS)[0]["transcript"], joined.as_str());
        let tentative: Vec<&Value> =
            desk.told.iter().filter(|e| e["type"].as_str().unwrap().contains("tentative")).collect();
        assert_eq!(tentative.len(), if told { 2 } else { 0 });
    }
}

#[test]
fn a_turn_that_nobody_answers_has_its_words_from_the_ear() {
    let mut desk = Desk::new(config());
    let turns = json!({"type": "server_vad", "create_response": false});
    desk.client(json!({"type": "session.update", "session": {"audio": {"input": {"turn_detection": turns}}}}));
    hear_in_packets(&mut desk, &noise_f32(2.3, |t| (0.5..1.5).contains(&t) && syllables(t)));
    assert!(desk.started.is_empty(), "nobody asked for an answer");
    assert!(desk.ears[0].ended && !desk.ears[0].dropped);
    desk.caption("All of", "");
    assert!(desk.all(WORDS).is_empty());
    desk.last_caption(" it.");
    assert_eq!(desk.all(WORDS).len(), 1);
    assert_eq!(desk.all(WORDS)[0]["transcript"], "All of it.");
    let id = desk.all("input_audio_buffer.committed")[0]["item_id"].clone();
    desk.client(json!({"type": "conversation.item.retrieve", "item_id": id}));
    assert_eq!(desk.told.last().unwrap()["item"]["content"][0]["transcript"], "All of it.");
}

/// The ear and the answer may both know the words: they are told once, by whoever knows them first.
#[test]
fn words_are_told_once() {
    for (ear_first, ear_ends_early) in [(true, false), (false, false), (false, true)] {
        let mut desk = Desk::new(config());
        let input = json!({"turn_detection": null});
        desk.client(json!({"type": "session.update", "session": {"audio": {"input": input}}}));
        desk.hear(&noise_f32(1.0, syllables));
        desk.client(json!({"type": "input_audio_buffer.commit"}));
        desk.client(json!({"type": "response.create"}));
        if ear_ends_early {
            desk.captions_ended();
        }
        desk.caption("All", "");
        if ear_first {
            desk.last_caption(" of it.");
        }
        desk.engine(Event::Heard("All of it.".into()));
        if !ear_first && !ear_ends_early {
            desk.last_caption(" of it.");
        }
        desk.captions_ended();
        desk.done();
        let told: Vec<_> = desk.all(WORDS).iter().map(|event| event["transcript"].clone()).collect();
        assert_eq!(told, ["All of it."], "{ear_first} {ear_ends_early}");
        let deltas: String = desk.all(WORDS_DELTA).iter().map(|e| e["delta"].as_str().unwrap().to_owned()).collect();
        assert!(deltas == "All of it." || (ear_ends_early && deltas.is_empty()), "{deltas:?}");
    }
}

#[test]
fn a_turn_whose_ear_is_lost_says_so_when_nobody_answers_it() {
    let mut desk = Desk::new(config());
    let turns = json!({"type": "server_vad", "create_response": false});
    desk.client(json!({"type": "session.update", "session": {"audio": {"input": {"turn_detection": turns}}}}));
    hear_in_packets(&mut desk, &noise_f32(2.3, |t| (0.5..1.5).contains(&t) && syllables(t)));
    desk.caption("All", "");
    desk.captions_ended();
    assert!(desk.all(WORDS).is_empty());
    let failed = desk.all("conversation.item.input_audio_transcription.failed");
    assert_eq!((failed.len(), &failed[0]["error"]["code"]), (1, &json!("transcription_failed")));
    // An answer that is asked for later knows them.
    desk.client(json!({"type": "response.create"}));
    desk.engine(Event::Heard("All of it.".into()));
    assert_eq!(desk.all(WORDS)[0]["transcript"], "All of it.");
}

/// Who pauses in mid sentence is answered and goes on: the answer is given up before it knows the words.
#[test]
fn i7_words_of_a_turn_whose_answer_was_given_up_are_read_again() {
    let mut desk = Desk::new(config());
    hear_in_packets(&mut desk, &noise_f32(2.0, |t| t > 0.5 && syllables(t)));
    desk.caption("I would like", "");
    hear_in_packets(&mut desk, &noise_f32(0.8, |_| false));
    assert_eq!((desk.all(SPEECH_STOPPED).len(), desk.all("response.created").len()), (1, 1));
    hear_in_packets(&mut desk, &noise_f32(0.5, syllables));
    assert_eq!(desk.all("response.done")[0]["response"]["status"], "cancelled");
    let item = desk.all("input_audio_buffer.committed")[0]["item_id"].clone();
    let again = desk.ears.iter().position(|ear| ear.ended).unwrap();
    assert!(desk.ears[again].listen.captions && desk.ears[again].heard.is_empty());
    let last = desk.ears[again].listen.conversation.last().unwrap();
    assert!(
        matches!(last, Item::Message { content, .. } if matches!(&content[..], [Content::Sound(sound)] if sound.len() > 16_000))
    );
    desk.last_caption_of(again, "I would like to book");
    assert_eq!(
        (&desk.all(WORDS)[0]["item_id"], &desk.all(WORDS)[0]["transcript"]),
        (&item, &json!("I would like to book"))
    );
    let deltas = desk.all(WORDS_DELTA);
    let of_it = deltas.iter().filter(|delta| delta["item_id"] == item);
    assert_eq!(of_it.map(|delta| delta["delta"].as_str().unwrap()).collect::<String>(), "I would like to book");
    // What is said now has an ear of its own.
    desk.caption("a table", "");
    assert_ne!(desk.all(WORDS_DELTA).last().unwrap()["item_id"], item);
}

#[test]
fn a_turn_whose_first_ear_is_lost_is_not_told_as_whole() {
    let mut desk = Desk::new(config());
    let turns = json!({"type": "server_vad", "create_response": false});
    desk.client(json!({"type": "session.update", "session": {"audio": {"input": {"turn_detection": turns}}}}));
    hear_in_packets(&mut desk, &noise_f32(28.0, |t| t > 0.5 && syllables(t)));
    assert!(desk.ears[0].ended && desk.ears.len() == 2);
    desk.caption("and so on", "");
    let first = desk.ears[0].id;
    desk.give(Input::CaptionsEnded(first));
    hear_in_packets(&mut desk, &noise_f32(0.8, |_| false));
    desk.last_caption(" to the end.");
    assert!(desk.all(WORDS).is_empty());
    assert_eq!(desk.all("conversation.item.input_audio_transcription.failed").len(), 1);
}

#[test]
fn reasoning_beside_the_reply_belongs_to_one_item() {
    let mut config = config();
    config.thinking.pace = Pace::SpeakFirst;
    let mut desk = Desk::new(config);
    desk.client(json!({"type": "session.update", "session": {"include": ["reasoning.text"]}}));
    desk.client(json!({"type": "response.create"}));
    assert_eq!(desk.started[0].1.pace, Pace::SpeakFirst);
    desk.kinds();
    for (i, word) in ["a ", "b ", "c "].into_iter().enumerate() {
        desk.engine(Event::Reply(word.into()));
        desk.engine(Event::Reasoning(format!("{i} ")));
    }
    desk.done();
    let id = desk.all("conversation.item.added")[0]["item"]["id"].clone();
    for kind in ["response.output_text.delta", "response.reasoning_text.delta"] {
        let place = |e: &&Value| (e["item_id"].clone(), e["output_index"].clone());
        let deltas = desk.all(kind);
        assert_eq!(deltas.len(), 3, "{kind}: {:?}", desk.told.iter().map(|e| e["type"].clone()).collect::<Vec<_>>());
        assert!(deltas.iter().map(place).all(|p| p == (id.clone(), json!(0))));
    }
    let done = desk.all("response.output_text.done");
    assert_eq!((done.len(), &done[0]["text"]), (1, &json!("a b c ")));
}

/// A turn of `seconds`, then the engine's words, reasoning and reply.
fn converse(desk: &mut Desk, turn: &[f32], words: &str, reply: &str) {
    desk.hear(turn);
    desk.engine(Event::Heard(words.into()));
    desk.engine(Event::Reasoning("a thought that nobody needs later ".repeat(20)));
    desk.engine(Event::Reply(reply.into()));
    desk.done();
}

#[test]
fn three_hours_of_talk_stay_answered_and_small() {
    let limits = Config::default().limits;
    let mut desk = Desk::new(config());
    let turn = noise_f32(12.0, |t| t < 10.0 && syllables(t));
    let (mut answered, mut longest, mut prepared) = (0, 0, 0);
    let mut deleted = 0;
    while desk.now < Duration::from_secs(3 * 3600) {
        let n = answered;
        converse(&mut desk, &turn, &format!("question number {n}, said in some words"), &format!("answer number {n}"));
        answered += 1;
        let (_, request) = desk.started.pop().unwrap();
        desk.started.clear();
        let (now, before) = sound_of(&request);
        assert!(now.len() > 150_000, "the newest turn is always heard, not read");
        assert!(before as f32 / 16_000.0 <= limits.heard_seconds);
        let texts: Vec<&str> = request.conversation.iter().flat_map(texts_of).collect();
        longest = longest.max(texts.iter().map(|text| text.len() / 4 + 6).sum::<usize>() + (before + now.len()) / 1280);
        assert!(!texts.iter().any(|text| text.contains("a thought that nobody")), "reasoning is not kept");
        prepared += desk.ears.iter().filter(|ear| ear.heard.is_empty() && ear.dropped).count();
        deleted += desk.all("conversation.item.deleted").len();
        assert!(desk.all("error").is_empty());
        assert_eq!(desk.all("response.done").last().unwrap()["response"]["status"], "completed");
        desk.ears.clear();
        desk.told.clear();
    }
    assert!(answered >= 900, "{answered}");
    assert!(longest < 2 * limits.conversation_tokens, "{longest}");
    assert!(prepared > 20, "what was compacted is prefilled while nobody speaks: {prepared}");
    assert!(deleted > 500, "{deleted}");
}

#[test]
fn old_sound_becomes_its_words() {
    let mut config = config();
    config.limits.heard_seconds = 30.0;
    let mut desk = Desk::new(config);
    let turn = noise_f32(12.0, |t| t < 10.0 && syllables(t));
    for n in 0..4 {
        converse(&mut desk, &turn, &format!("words {n}"), "Yes.");
    }
    let (_, request) = desk.started.last().unwrap();
    let first = Item::Message { role: Role::User, content: vec![Content::Text("words 0".into())] };
    assert_eq!(request.conversation[0], first);
    // The client sees the item as it was.
    let id = desk.all("input_audio_buffer.committed")[0]["item_id"].clone();
    desk.client(json!({"type": "conversation.item.retrieve", "item_id": id}));
    assert_eq!(desk.told.last().unwrap()["item"]["content"], json!([{"type": "input_audio", "transcript": "words 0"}]));
}
