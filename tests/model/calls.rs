//! Functions on nano: a call that must be made is made in its form, and its output is answered.

use hearken::engine::local::{Local, LocalOptions};
use hearken::engine::{
    Calling, Content, Ending, Engine, Event, Finish, Item, KvType, Pace, Request, Role, Sampling, SessionId, Tenant,
    Thinking,
};
use serde_json::{Value, json};

fn all(engine: &Local, request: Request) -> Vec<Event> {
    let mut turn = engine.respond(request).unwrap();
    std::iter::from_fn(|| turn.blocking_next()).collect()
}

fn text(role: Role, text: &str) -> Item {
    Item::Message { role, content: vec![Content::Text(text.into())] }
}

#[test]
fn a_call_that_must_be_made_is_of_its_schema_whatever_is_asked() {
    let path = crate::nano_directory();
    let options = LocalOptions {
        path,
        device: "cpu".into(),
        words: false,
        turns: 2,
        remembered_tokens: 4096,
        kv: KvType::F32,
        batched: true,
    };
    let engine = Local::start(options).unwrap();
    let light = json!({"type": "function", "name": "set_light", "description": "Switch a light of the house on or off",
        "parameters": {"type": "object", "required": ["room", "on"],
            "properties": {"room": {"enum": ["kitchen", "hall"]}, "on": {"type": "boolean"}}}});
    let timer = json!({"type": "function", "name": "set_timer", "description": "Start a timer",
        "parameters": {"type": "object", "required": ["minutes"], "properties": {"minutes": {"type": "integer"}}}});
    let request = |said: &str, calling: Calling, thinking: Thinking| Request {
        session: SessionId(1),
        tenant: Tenant(1),
        conversation: vec![text(Role::User, said)],
        tools: json!([light, timer]).to_string(),
        calling,
        thinking,
        thinking_budget: 40,
        pace: Pace::ThinkBefore,
        max_reply_tokens: 64,
        sampling: Sampling::greedy(),
        words: false,
        ending: Ending::Known,
    };
    let named = Calling::This("set_timer".into());
    for (said, calling, thinking, name) in [
        ("Turn on the light in the kitchen.", Calling::Must, Thinking::Off, Some("set_light")),
        ("Set a timer for five minutes.", Calling::Must, Thinking::On, Some("set_timer")),
        ("Turn on the light in the hall.", named, Thinking::Off, Some("set_timer")),
        ("What is a poem?", Calling::Must, Thinking::Off, None),
    ] {
        let events = all(&engine, request(said, calling, thinking));
        let Some(Event::ToolCall { name: called, arguments }) =
            events.iter().find(|event| matches!(event, Event::ToolCall { .. }))
        else {
            panic!("{said}: {events:?}")
        };
        assert!(name.is_none_or(|name| name == called), "{said}: {called}");
        let value: Value = serde_json::from_str(arguments).unwrap();
        match &called[..] {
            "set_light" => {
                assert!(["kitchen", "hall"].contains(&value["room"].as_str().unwrap()) && value["on"].is_boolean())
            }
            _ => assert!(value["minutes"].is_i64(), "{arguments}"),
        }
        let deltas =
            events.iter().filter_map(|e| if let Event::CallDelta { delta, .. } = e { Some(&delta[..]) } else { None });
        assert_eq!(&deltas.collect::<String>(), arguments, "what was streamed is the call");
        assert!(matches!(events.last(), Some(Event::Done { finish: Finish::Stop, .. })), "{events:?}");
    }

    // A call that the model makes by itself is told on its way as well, and no word of it as text.
    let said = [
        "Set a timer for five minutes.",
        "Start a timer for ten minutes, please.",
        "Turn on the light in the kitchen.",
    ];
    let turns = said.map(|said| all(&engine, request(said, Calling::May, Thinking::Off)));
    let mut calls = 0;
    for events in turns {
        let arguments =
            events.iter().find_map(|e| if let Event::ToolCall { arguments, .. } = e { Some(arguments) } else { None });
        let Some(arguments) = arguments else { continue };
        calls += 1;
        let deltas: Vec<&str> = events
            .iter()
            .filter_map(|e| if let Event::CallDelta { delta, .. } = e { Some(&delta[..]) } else { None })
            .collect();
        assert!(deltas.len() > 1 && deltas.concat() == *arguments, "{events:?}");
        assert!(!events.iter().any(|e| matches!(e, Event::Reply(_))), "{events:?}");
    }
    assert!(calls > 0, "nano calls at least one of these");

    // The output goes back, and words come.
    let mut request = request("Set a timer for five minutes.", Calling::May, Thinking::Off);
    request.conversation.extend([
        Item::ToolCall { name: "set_timer".into(), arguments: "{\"minutes\":5}".into() },
        Item::ToolResult { name: "set_timer".into(), output: "It runs.".into() },
    ]);
    request.tools = String::new();
    let events = all(&engine, request);
    assert!(events.iter().any(|event| matches!(event, Event::Reply(text) if !text.is_empty())), "{events:?}");
}
