//! The engine on nano: a turn that was heard while it was spoken is the turn that is heard afterwards, only sooner.

use std::sync::Arc;

use hearken::engine::local::{Local, LocalOptions};
use hearken::engine::{
    Calling, Caption, Content, Ending, Engine, Event, Item, KvType, Listen, Listening, Pace, Request, Role, Sampling,
    SessionId, Tenant, Thinking, Timings, Turn, Usage,
};

fn nano(words: bool) -> Local {
    let path = crate::nano_directory();
    Local::start(LocalOptions {
        path,
        device: "cpu".into(),
        words,
        turns: 8,
        remembered_tokens: 8192,
        kv: KvType::F32,
        batched: true,
    })
    .unwrap()
}

fn spoken(samples: &[f32]) -> Vec<Item> {
    let system = Item::Message { role: Role::System, content: vec![Content::Text("You are a listener.".into())] };
    vec![system, Item::Message { role: Role::User, content: vec![Content::Sound(Arc::from(samples))] }]
}

fn request(session: u64, conversation: Vec<Item>) -> Request {
    Request {
        session: SessionId(session),
        tenant: Tenant(1),
        conversation,
        tools: String::new(),
        calling: Calling::May,
        thinking: Thinking::On,
        thinking_budget: 40,
        pace: Pace::ThinkBefore,
        max_reply_tokens: 12,
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        words: true,
        ending: Ending::Known,
    }
}

fn listen(engine: &Local, session: u64, tenant: Tenant) -> Listening {
    let listen =
        Listen { session: SessionId(session), tenant, conversation: spoken(&[]), tools: String::new(), captions: true };
    engine.listen(listen).unwrap()
}

#[derive(Debug, Default)]
struct Told {
    heard: String,
    reasoning: String,
    reply: String,
    usage: Usage,
    timings: Timings,
}

fn told(mut turn: Turn) -> Told {
    let mut told = Told::default();
    while let Some(event) = turn.blocking_next() {
        match event {
            Event::Heard(text) => told.heard = text,
            Event::Reasoning(text) => told.reasoning.push_str(&text),
            Event::Reply(text) => told.reply.push_str(&text),
            Event::Done { usage, timings, .. } => (told.usage, told.timings) = (usage, timings),
            other => panic!("{other:?}"),
        }
    }
    told
}

fn jfk() -> Vec<f32> {
    hearken::audio::file::read(&crate::tests("audio/jfk.wav"), 60.0).unwrap()
}

/// Speaks, and reads a caption for each second of it.
fn speak(listening: &mut Listening, samples: &[f32]) -> String {
    let mut committed = String::new();
    for second in samples.chunks(16_000) {
        second.chunks(320).for_each(|packet| assert_eq!(listening.push(packet), 0));
        if second.len() == 16_000 {
            let Caption { committed: more, .. } = listening.blocking_next().unwrap();
            committed.push_str(&more);
        }
    }
    committed
}

#[test]
fn a_turn_heard_while_spoken_is_the_turn_heard_afterwards() {
    let engine = nano(false);
    let samples = jfk();
    let cold = told(engine.respond(request(1, spoken(&samples))).unwrap());
    assert_eq!(cold.usage.cached_tokens, 0);
    // Another tenant's, so that nothing is found in the prefix index.
    let of_another = |mut request: Request| {
        request.tenant = Tenant(2);
        request
    };
    let listening = listen(&engine, 2, Tenant(2));
    samples.chunks(320).for_each(|packet| assert_eq!(listening.push(packet), 0));
    drop(listening);
    let warm = told(engine.respond(of_another(request(2, spoken(&samples)))).unwrap());
    assert_eq!((&warm.reasoning, &warm.reply), (&cold.reasoning, &cold.reply));
    assert!(warm.usage.cached_tokens * 10 > 8 * warm.usage.sound_tokens, "{:?}", warm.usage);
    // Again: now all of it is known but the last token.
    let again = told(engine.respond(of_another(request(2, spoken(&samples)))).unwrap());
    assert_eq!((&again.reasoning, &again.reply), (&cold.reasoning, &cold.reply));
    assert_eq!(again.usage.cached_tokens + 1, again.usage.sound_tokens + again.usage.text_tokens);
}

/// Speaks to its end without waiting, and reads all captions: what was committed, and how many there were.
fn captions(listening: &mut Listening, samples: &[f32]) -> (String, usize) {
    // As fast as it hears, so that it reads again and again: a caption is waited for every four seconds.
    let (mut committed, mut count) = (String::new(), 0);
    let mut take = |caption: Caption| {
        committed.push_str(&caption.committed);
        count += 1;
        caption.is_last
    };
    for part in samples.chunks(64_000) {
        part.chunks(320).for_each(|packet| assert_eq!(listening.push(packet), 0));
        if part.len() == 64_000 {
            assert!(!take(listening.blocking_next().unwrap()));
        }
    }
    listening.finish();
    while !take(listening.blocking_next().expect("the last caption is marked")) {}
    (committed, count)
}

#[test]
fn sound_that_comes_just_before_the_closing_is_in_the_last_reading() {
    let engine = nano(true);
    let samples = &jfk()[..5 * 16_000];
    let last = |text: &str| text.split_whitespace().last().map(str::to_lowercase);
    let mut listening = listen(&engine, 1, Tenant(1));
    let whole = last(&captions(&mut listening, samples).0);
    // The rest and the closing come while the engine hears the beginning, a little later each time.
    for round in 0..12 {
        let mut listening = listen(&engine, 10 + round, Tenant(10 + round));
        assert_eq!(listening.push(&samples[..56_000]), 0);
        std::thread::sleep(std::time::Duration::from_millis(9 * round));
        assert_eq!(listening.push(&samples[56_000..]), 0);
        listening.finish();
        let mut committed = String::new();
        loop {
            let caption = listening.blocking_next().expect("the last caption is marked");
            committed.push_str(&caption.committed);
            if caption.is_last {
                break;
            }
        }
        assert_eq!(last(&committed), whole, "after {} ms: {committed:?}", 9 * round);
    }
}

#[test]
fn i3_where_no_ear_reads_words_the_decoder_does_and_leaves_the_prefix_as_it_was() {
    let engine = nano(false);
    let samples = jfk();
    let cold = told(engine.respond(request(1, spoken(&samples))).unwrap());
    assert!(cold.heard.to_lowercase().contains("country"), "{:?}", cold.heard);
    let mut listening = listen(&engine, 2, Tenant(2));
    let (committed, count) = captions(&mut listening, &samples);
    assert!(committed.to_lowercase().contains("country") && count >= 3, "{count}: {committed:?}");
    drop(listening);
    let mut again = request(2, spoken(&samples));
    again.tenant = Tenant(2);
    let warm = told(engine.respond(again).unwrap());
    assert_eq!((&warm.reasoning, &warm.reply), (&cold.reasoning, &cold.reply));
    assert_eq!(warm.heard, committed, "what the ear has read to its end is not read again");
}

#[test]
fn i3_full_attention_hears_provisionally_while_it_is_spoken() {
    let path = crate::tests("golden/tiny");
    let options = LocalOptions {
        path,
        device: "cpu".into(),
        words: true,
        turns: 4,
        remembered_tokens: 2048,
        kv: KvType::Q8,
        batched: true,
    };
    let engine = Local::start(options).unwrap();
    let samples = &jfk()[..10 * 16_000];
    let mut asked = request(1, spoken(samples));
    (asked.thinking_budget, asked.max_reply_tokens) = (12, 6);
    let cold = told(engine.respond(asked.clone()).unwrap());
    let mut listening = listen(&engine, 2, Tenant(2));
    // Random weights say what they like; that they are asked while the segment is open, and that it leaves no trace, is what counts.
    let (_, count) = captions(&mut listening, samples);
    assert!(count >= 3, "{count}");
    drop(listening);
    (asked.session, asked.tenant) = (SessionId(2), Tenant(2));
    let warm = told(engine.respond(asked).unwrap());
    assert_eq!((&warm.reasoning, &warm.reply), (&cold.reasoning, &cold.reply));
}

#[test]
fn i7_captions_that_were_committed_begin_what_was_heard() {
    let engine = nano(true);
    let samples = jfk();
    let mut listening = listen(&engine, 1, Tenant(1));
    let committed = speak(&mut listening, &samples);
    assert!(committed.len() > 40, "{committed:?}");
    drop(listening);
    let heard = told(engine.respond(request(1, spoken(&samples))).unwrap());
    assert!(heard.heard.starts_with(&committed), "{committed:?} stays: {:?}", heard.heard);
    assert!(heard.reasoning.contains(&heard.heard), "the words stand in the reasoning: {heard:?}");
    // A second answer to the same sound does not listen again.
    let again = told(engine.respond(request(1, spoken(&samples))).unwrap());
    assert_eq!((again.heard, again.timings.encode.as_millis()), (heard.heard, 0));
}

#[test]
fn i3_a_mind_that_thought_too_early_leaves_nothing_behind() {
    let engine = nano(false);
    let samples = jfk();
    let cold = told(engine.respond(request(1, spoken(&samples))).unwrap());
    let listening = listen(&engine, 2, Tenant(1));
    // A pause after four seconds: thinking begins on what was said, and is dropped when speech goes on.
    let pause = 4 * 16_000 + 123;
    listening.push(&samples[..pause]);
    let mut early = engine.respond(request(2, spoken(&samples[..pause]))).unwrap();
    assert!(matches!(early.blocking_next(), Some(Event::Reasoning(_) | Event::Heard(_))));
    listening.push(&samples[pause..pause + 1000]);
    drop(early);
    listening.push(&samples[pause + 1000..]);
    // Two of the same session at once, and the ear still open.
    let (one, two) =
        (engine.respond(request(2, spoken(&samples))).unwrap(), engine.respond(request(2, spoken(&samples))).unwrap());
    let (one, two) = (told(one), told(two));
    assert_eq!((&one.reasoning, &one.reply), (&cold.reasoning, &cold.reply));
    assert_eq!((&two.reasoning, &two.reply), (&cold.reasoning, &cold.reply));
}

#[test]
fn a_conversation_goes_on_from_what_was_said() {
    let engine = nano(true);
    let samples = jfk();
    let first = told(engine.respond(request(1, spoken(&samples))).unwrap());
    let mut conversation = spoken(&samples);
    conversation.push(Item::Message { role: Role::Assistant, content: vec![Content::Text(first.reply)] });
    conversation.push(Item::Message { role: Role::User, content: vec![Content::Text("Say it again.".into())] });
    let second = told(engine.respond(request(1, conversation)).unwrap());
    let new = second.usage.text_tokens + second.usage.sound_tokens - second.usage.cached_tokens;
    assert!(new < 40, "only what is new goes through: {:?}", second.usage);
    assert!(!second.reply.is_empty());
}

#[test]
fn thinking_and_speaking_side_by_side_ends_with_a_reply() {
    let engine = nano(true);
    for pace in [Pace::ThinkFirst, Pace::SpeakFirst] {
        let mut request = request(
            1,
            vec![Item::Message {
                role: Role::User,
                content: vec![Content::Text("Count from one to five, in words.".into())],
            }],
        );
        (request.pace, request.thinking_budget, request.max_reply_tokens) = (pace, 120, 60);
        let mut turn = engine.respond(request).unwrap();
        let (mut order, mut told) = (Vec::new(), Told::default());
        while let Some(event) = turn.blocking_next() {
            match event {
                Event::Reasoning(text) => {
                    order.push('r');
                    told.reasoning.push_str(&text);
                }
                Event::Reply(text) => {
                    order.push('s');
                    told.reply.push_str(&text);
                }
                Event::Done { usage, .. } => told.usage = usage,
                Event::Heard(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(!told.reply.trim().is_empty() && !told.reasoning.is_empty(), "{pace:?}: {told:?}");
        if told.usage.reasoning_tokens > 100 {
            let first_said = order.iter().position(|c| *c == 's').unwrap();
            assert!(order[first_said..].contains(&'r'), "{pace:?}: both go on side by side");
        }
        println!("{pace:?}: {} | {}", told.reasoning, told.reply);
    }
}

#[test]
fn i5_an_ear_takes_a_segment_and_says_what_found_no_room() {
    let engine = nano(false);
    let listening = listen(&engine, 1, Tenant(1));
    let second = vec![0.0; 16_000];
    let lost: usize = (0..32).map(|_| listening.push(&second)).sum();
    assert_eq!(lost, 32 * 16_000 - hearken_models::checkpoint::SEGMENT);
    // As many ears as turns, and not one more.
    let ears: Vec<_> = (2..=8).map(|id| listen(&engine, id, Tenant(1))).collect();
    let ninth = Listen {
        session: SessionId(9),
        tenant: Tenant(1),
        conversation: spoken(&[]),
        tools: String::new(),
        captions: false,
    };
    assert!(matches!(engine.listen(ninth.clone()), Err(hearken::engine::EngineError::Overloaded { waiting: 8 })));
    drop((ears, listening));
    // What was given back is there for the next one, as soon as the ears have heard what was left.
    let again = || {
        (0..600).any(|_| {
            engine.listen(ninth.clone()).is_ok() || {
                std::thread::sleep(std::time::Duration::from_millis(50));
                false
            }
        })
    };
    assert!(again());
}

#[test]
fn what_does_not_fit_is_refused_before_it_begins() {
    let path = crate::nano_directory();
    let options = LocalOptions {
        path,
        device: "cpu".into(),
        words: false,
        turns: 8,
        remembered_tokens: 0,
        kv: KvType::F32,
        batched: true,
    };
    let engine = Local::start(options).unwrap();
    let mut long =
        request(1, vec![Item::Message { role: Role::User, content: vec![Content::Text("a b ".repeat(16_000))] }]);
    long.max_reply_tokens = 40_000;
    let mut turn = engine.respond(long).unwrap();
    assert!(matches!(turn.blocking_next(), Some(Event::Failed(hearken::engine::EngineError::ContextFull { .. }))));
    assert!(turn.blocking_next().is_none());
    // And the next one is served.
    let small = request(1, vec![Item::Message { role: Role::User, content: vec![Content::Text("Hello.".into())] }]);
    assert!(!told(engine.respond(small).unwrap()).reply.is_empty());
}

#[test]
fn i3_whether_the_user_has_finished_is_asked_on_a_fork_that_leaves_nothing_behind() {
    let engine = nano(true);
    let samples = jfk();
    let cold = told(engine.respond(request(1, spoken(&samples))).unwrap());
    let ask = |session: u64, ending: Ending, samples: &[f32]| {
        let mut turn = engine.respond(Request { ending, ..request(session, spoken(samples)) }).unwrap();
        let (mut chances, mut told) = (Vec::new(), Told::default());
        while let Some(event) = turn.blocking_next() {
            match event {
                Event::Finished(chance) => chances.push(chance),
                Event::Heard(text) => told.heard = text,
                Event::Reasoning(text) => told.reasoning.push_str(&text),
                Event::Reply(text) => told.reply.push_str(&text),
                Event::Done { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(chances[..], [chance] if (0.0..=1.0).contains(&chance)), "{chances:?}");
        (chances[0], told)
    };
    let (beside, asked) = ask(2, Ending::Asked, &samples);
    assert_eq!((&asked.reasoning, &asked.reply), (&cold.reasoning, &cold.reply));
    let (alone, unanswered) = ask(3, Ending::AskedAlone, &samples);
    assert_eq!((unanswered.reasoning, unanswered.reply), (String::new(), String::new()));
    assert!((alone - beside).abs() < 1e-3, "the same question in other company: {alone}, {beside}");
    // Given up at any point, it leaves the session's prefix as it was.
    for events in 0..3 {
        let mut turn = engine.respond(Request { ending: Ending::Asked, ..request(2, spoken(&samples)) }).unwrap();
        (0..events).for_each(|_| drop(turn.blocking_next()));
    }
    let again = told(engine.respond(request(2, spoken(&samples))).unwrap());
    assert_eq!((&again.reasoning, &again.reply), (&cold.reasoning, &cold.reply));
}
