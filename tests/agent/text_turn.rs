//! A typed turn, event by event.

use hearken::engine::{Calling, Content, EngineError, Event, Finish, Item, Role, Thinking, Timings, Usage};
use serde_json::json;

use crate::harness::{config, done, serve};

const OPENING: [&str; 4] =
    ["response.created", "response.output_item.added", "conversation.item.added", "response.content_part.added"];
const CLOSING: [&str; 5] = [
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
];

#[tokio::test]
async fn a_text_turn_comes_in_the_documented_order() {
    let mut server = serve(config()).await;
    let mut client = server.connect().await;
    assert_eq!(client.session["object"], "realtime.session");
    assert_eq!(client.session["model"], "test-model");
    assert_eq!(client.session["output_modalities"], json!(["text"]));
    client.update(json!({"type": "realtime", "instructions": "Be brief.", "output_modalities": ["audio"]})).await;
    client.say("Hello?").await;
    client.send(json!({"type": "response.create", "response": {"metadata": {"client_event_id": "c1"}}})).await;
    let created = client.expect("response.created").await;
    assert_eq!(created["response"]["metadata"]["client_event_id"], "c1");
    assert_eq!(created["response"]["status"], "in_progress");

    let asked = server.asked().await;
    let text = |role, text: &str| Item::Message { role, content: vec![Content::Text(text.into())] };
    assert_eq!(asked.request.conversation, [text(Role::System, "Be brief."), text(Role::User, "Hello?")]);
    assert_eq!((asked.request.thinking, asked.request.tools.as_str()), (Thinking::On, ""));
    asked.say(Event::Reasoning("hm".into())).await;
    asked.say(Event::Reply("Hi ".into())).await;
    asked.say(Event::Reply("there.".into())).await;
    asked.done().await;

    client.expect_all(&OPENING[1..]).await;
    let part = client.expect("response.output_text.delta").await;
    assert_eq!((&part["delta"], &part["output_index"], &part["content_index"]), (&json!("Hi "), &json!(0), &json!(0)));
    client.expect("response.output_text.delta").await;
    let closing = client.expect_all(&CLOSING).await;
    assert_eq!(closing[0]["text"], "Hi there.");
    assert_eq!(closing[1]["part"], json!({"type": "text", "text": "Hi there."}));
    assert_eq!(closing[3]["item"]["content"], json!([{"type": "output_text", "text": "Hi there."}]));
    let response = &closing[4]["response"];
    assert_eq!((&response["object"], &response["status"]), (&json!("realtime.response"), &json!("completed")));
    assert!(response.get("status_details").is_some_and(|d| d.is_null()), "the key is there");
    assert!(response.get("timings_ms").is_none(), "not asked for");
    assert_eq!(response["output"][0]["id"], part["item_id"]);
    let usage = &response["usage"];
    assert_eq!(
        (&usage["total_tokens"], &usage["input_tokens"], &usage["output_tokens"]),
        (&json!(18), &json!(12), &json!(6))
    );
    assert_eq!(
        usage["input_token_details"],
        json!({"text_tokens": 7, "audio_tokens": 5, "cached_tokens": 3,
               "cached_tokens_details": {"text_tokens": 2, "audio_tokens": 1}})
    );

    // The next turn has it in its conversation, and the chain of items is right.
    client.say("And?").await;
    client.send(json!({"type": "response.create"})).await;
    let asked = server.asked().await;
    assert_eq!(asked.request.conversation[2], text(Role::Assistant, "Hi there."));
}

#[tokio::test]
async fn reasoning_and_times_are_told_only_to_those_who_ask() {
    let mut server = serve(config()).await;
    let mut client = server.connect().await;
    let session =
        client.update(json!({"include": ["reasoning.text", "hearken.timings"], "reasoning": {"effort": "low"}})).await;
    assert_eq!(session["reasoning"]["effort"], "low");
    client.say("Why?").await;
    client.send(json!({"type": "response.create"})).await;
    let asked = server.asked().await;
    assert_eq!(asked.request.thinking_budget, config().thinking.low);
    asked.say(Event::Reasoning("Let me ".into())).await;
    asked.say(Event::Reasoning("see.".into())).await;
    asked.say(Event::Reply("Because.".into())).await;
    asked.done().await;
    client.expect("response.created").await;
    let first = client.expect("response.reasoning_text.delta").await;
    client.expect("response.reasoning_text.delta").await;
    let end = client.expect("response.reasoning_text.done").await;
    assert_eq!(end["text"], "Let me see.");
    let added = client.expect("response.output_item.added").await;
    assert_eq!(added["item"]["id"], first["item_id"], "the reasoning names the item that it leads to");
    client.expect_all(&OPENING[2..]).await;
    client.expect("response.output_text.delta").await;
    let closing = client.expect_all(&CLOSING).await;
    assert_eq!(closing[4]["response"]["timings_ms"]["prefill"], 1.5);
}

#[tokio::test]
async fn effort_none_does_not_think() {
    let mut server = serve(config()).await;
    let mut client = server.connect().await;
    client.update(json!({"reasoning": {"effort": "none"}, "max_output_tokens": 9})).await;
    client.say("Quick!").await;
    client.send(json!({"type": "response.create"})).await;
    let asked = server.asked().await;
    assert_eq!((asked.request.thinking, asked.request.max_reply_tokens), (Thinking::Off, 9));
}

#[tokio::test]
async fn a_limit_makes_it_incomplete_and_a_failure_is_told_without_an_error_event() {
    let mut server = serve(config()).await;
    let mut client = server.connect().await;
    client.say("Count.").await;
    client.send(json!({"type": "response.create"})).await;
    let asked = server.asked().await;
    asked.say(Event::Reply("one".into())).await;
    asked.say(Event::Done { finish: Finish::Length, usage: Usage::default(), timings: Timings::default() }).await;
    client.expect_all(&OPENING).await;
    client.expect("response.output_text.delta").await;
    let closing = client.expect_all(&CLOSING).await;
    assert_eq!(closing[4]["response"]["status_details"], json!({"type": "incomplete", "reason": "max_output_tokens"}));
    assert_eq!(closing[3]["item"]["status"], "incomplete");

    *server.engine.refusal.lock().unwrap() = Some(EngineError::Overloaded { waiting: 9 });
    client.send(json!({"type": "response.create"})).await;
    client.expect("response.created").await;
    let failed = client.expect("response.done").await;
    assert_eq!(failed["response"]["status"], "failed");
    assert_eq!(failed["response"]["status_details"]["error"]["code"], "overloaded");

    // An engine that dies mid-turn is a failed turn as well.
    *server.engine.refusal.lock().unwrap() = None;
    client.send(json!({"type": "response.create"})).await;
    drop(server.asked().await);
    client.expect("response.created").await;
    assert_eq!(client.expect("response.done").await["response"]["status"], "failed");
}

#[tokio::test]
async fn a_function_is_called_and_its_output_goes_back() {
    let mut server = serve(config()).await;
    let mut client = server.connect().await;
    let tool = json!({"type": "function", "name": "clock", "parameters": {"type": "object"}});
    client.update(json!({"tools": [tool], "tool_choice": "auto"})).await;
    client.say("What time is it?").await;
    client.send(json!({"type": "response.create"})).await;
    let asked = server.asked().await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&asked.request.tools).unwrap(), json!([tool]));
    asked.say(Event::Reply("Let me look.".into())).await;
    asked.say(Event::ToolCall { name: "clock".into(), arguments: "{\"zone\":\"UTC\"}".into() }).await;
    asked.say(done()).await;
    client.expect_all(&OPENING).await;
    client.expect("response.output_text.delta").await;
    client.expect_all(&CLOSING[..4]).await;
    let call = client
        .expect_all(&[
            "response.output_item.added",
            "conversation.item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "conversation.item.done",
            "response.done",
        ])
        .await;
    assert_eq!((&call[0]["output_index"], &call[3]["arguments"]), (&json!(1), &json!("{\"zone\":\"UTC\"}")));
    assert_eq!(call[4]["item"]["type"], "function_call");
    assert_eq!(call[6]["response"]["output"].as_array().unwrap().len(), 2);

    let output = json!({"type": "function_call_output", "call_id": call[3]["call_id"], "output": "noon"});
    client.send(json!({"type": "conversation.item.create", "item": output})).await;
    client.expect_all(&["conversation.item.added", "conversation.item.done"]).await;
    client.send(json!({"type": "response.create"})).await;
    let asked = server.asked().await;
    assert_eq!(
        asked.request.conversation[2..],
        [
            Item::ToolCall { name: "clock".into(), arguments: "{\"zone\":\"UTC\"}".into() },
            Item::ToolResult { name: "clock".into(), output: "noon".into() },
        ]
    );
}

#[tokio::test]
async fn a_call_is_told_while_it_is_written_and_one_that_was_cut_off_was_never_made() {
    let mut server = serve(config()).await;
    let mut client = server.connect().await;
    let tool = json!({"type": "function", "name": "clock", "parameters": {"type": "object"}});
    let choice = json!({"type": "function", "name": "clock"});
    let session = client.update(json!({"tools": [tool], "tool_choice": choice})).await;
    assert_eq!(session["tool_choice"], choice);
    client.say("What time is it?").await;
    client.send(json!({"type": "response.create"})).await;
    let asked = server.asked().await;
    assert_eq!(asked.request.calling, Calling::This("clock".into()));
    for delta in ["{\"zone\":", "\"UTC\"}"] {
        asked.say(Event::CallDelta { name: "clock".into(), delta: delta.into() }).await;
    }
    asked.say(Event::ToolCall { name: "clock".into(), arguments: "{\"zone\":\"UTC\"}".into() }).await;
    asked.done().await;
    let call = client
        .expect_all(&[
            "response.created",
            "response.output_item.added",
            "conversation.item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "conversation.item.done",
            "response.done",
        ])
        .await;
    assert_eq!((&call[1]["item"]["status"], &call[1]["item"]["arguments"]), (&json!("in_progress"), &json!("")));
    assert_eq!((&call[4]["delta"], &call[5]["arguments"]), (&json!("\"UTC\"}"), &json!("{\"zone\":\"UTC\"}")));
    assert_eq!(call[4]["call_id"], call[6]["item"]["call_id"]);

    client.send(json!({"type": "response.create", "response": {"tool_choice": "required"}})).await;
    let asked = server.asked().await;
    assert_eq!(asked.request.calling, Calling::Must);
    asked.say(Event::CallDelta { name: "clock".into(), delta: "{\"zo".into() }).await;
    client.expect_all(&["response.created", "response.output_item.added", "conversation.item.added"]).await;
    client.expect("response.function_call_arguments.delta").await;
    client.send(json!({"type": "response.cancel"})).await;
    let ended = client.expect_all(&["response.output_item.done", "conversation.item.done", "response.done"]).await;
    assert_eq!(ended[0]["item"]["status"], "incomplete");
    client.send(json!({"type": "response.create", "response": {"tool_choice": "none"}})).await;
    client.expect("response.created").await;
    let asked = server.asked().await;
    assert_eq!((asked.request.tools.as_str(), &asked.request.calling), ("", &Calling::May));
    assert_eq!(asked.request.conversation.len(), 2, "the question and the first call");

    client.send(json!({"type": "response.cancel"})).await;
    client.expect("response.done").await;
    let nobody = json!({"type": "function", "name": "nobody"});
    client.send(json!({"type": "response.create", "response": {"tool_choice": nobody}})).await;
    assert_eq!(client.expect("error").await["error"]["param"], "response.tool_choice");
    client.send(json!({"type": "session.update", "session": {"tools": [], "tool_choice": nobody}})).await;
    assert_eq!(client.expect("error").await["error"]["param"], "session.tool_choice");
}

#[tokio::test]
async fn items_are_put_in_order_shown_and_deleted() {
    let mut server = serve(config()).await;
    let mut client = server.connect().await;
    let item = |id: &str, text: &str| json!({"id": id, "type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]});
    for (id, previous, before) in [("b", None, None), ("a", Some("root"), None), ("ab", Some("a"), Some("a"))] {
        let mut event = json!({"type": "conversation.item.create", "item": item(id, id)});
        if let Some(previous) = previous {
            event["previous_item_id"] = previous.into();
        }
        client.send(event).await;
        let added = client.expect("conversation.item.added").await;
        assert_eq!(added.get("previous_item_id"), Some(&json!(before)), "{id}: null is the beginning");
        client.expect("conversation.item.done").await;
    }
    client.send(json!({"type": "conversation.item.retrieve", "item_id": "ab"})).await;
    assert_eq!(client.expect("conversation.item.retrieved").await["item"]["content"][0]["text"], "ab");
    client.send(json!({"type": "conversation.item.delete", "item_id": "ab"})).await;
    client.expect("conversation.item.deleted").await;
    for (event, code) in [
        (json!({"type": "conversation.item.retrieve", "item_id": "ab"}), "item_retrieve_invalid_item_id"),
        (json!({"type": "conversation.item.delete", "item_id": "ab"}), "item_delete_invalid_item_id"),
        (json!({"type": "conversation.item.create", "item": item("a", "twice")}), "item_create_duplicate_item_id"),
    ] {
        client.send(event).await;
        assert_eq!(client.expect("error").await["error"]["code"], code);
    }
    client.send(json!({"type": "response.create"})).await;
    let asked = server.asked().await;
    let said: Vec<_> = asked.request.conversation.iter().map(|i| format!("{i:?}")).collect();
    assert_eq!(said.len(), 2);
    assert!(said[0].contains("\"a\"") && said[1].contains("\"b\""), "{said:?}");
}

#[tokio::test]
async fn an_out_of_band_response_leaves_no_trace_in_the_conversation() {
    let mut server = serve(config()).await;
    let mut client = server.connect().await;
    client.say("Kept.").await;
    let input = json!([{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Aside."}]}]);
    client.send(json!({"type": "response.create", "response": {"conversation": "none", "input": input}})).await;
    let asked = server.asked().await;
    assert_eq!(asked.request.conversation.len(), 1);
    asked.say(Event::Reply("Ssh.".into())).await;
    asked.done().await;
    let events = client
        .expect_all(&[
            "response.created",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.done",
        ])
        .await;
    assert!(events[7]["response"].get("conversation_id").is_none());
    client.send(json!({"type": "response.create"})).await;
    assert_eq!(server.asked().await.request.conversation.len(), 1);
}
