//! Chat completions: what reaches the engine, what is answered whole and in chunks, what is refused, and what happens when a client goes away.

use base64::Engine as _;
use hearken::engine::{Content, EngineError, Event, Finish, Item, Role, Thinking, Timings, Usage};
use serde_json::{Value, json};

use crate::harness::{Server, config, done, noise, noise_f32, serve, soon, wav};

const PATH: &str = "/v1/chat/completions";

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn hello() -> Value {
    json!({"model": "any", "messages": [{"role": "user", "content": "Hello"}]})
}

fn text(role: Role, text: &str) -> Item {
    Item::Message { role, content: vec![Content::Text(text.into())] }
}

/// The chunks of a streamed answer, which ends as it should.
fn chunks(events: &[&str]) -> Vec<Value> {
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!(*last, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!((&chunk["id"], &chunk["model"]), (&chunks[0]["id"], &json!("test-model")));
    }
    chunks
}

#[tokio::test]
async fn sound_and_text_reach_the_engine_and_one_object_comes_back() {
    let mut server = serve(config()).await;
    let sound = noise_f32(1.0, |_| true);
    let pcm24: Vec<u8> = noise(1.5, |_| true);
    let audio = |data: &[u8], format: &str| json!({"type": "input_audio", "input_audio": {"data": base64(data), "format": format}});
    let body = json!({
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [audio(&wav(&sound), "wav"), {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Noise."}]},
            {"role": "user", "content": [audio(&pcm24, "pcm16")]},
        ],
        "temperature": 0, "top_p": 0.5, "seed": 7, "max_tokens": 9, "reasoning_effort": "low", "store": true,
    });
    let sent = server.begin_post(PATH, &body).await;
    let asked = server.asked().await;
    let request = &asked.request;
    assert_eq!(request.conversation[0], text(Role::System, "Be brief."));
    let Item::Message { role: Role::User, content } = &request.conversation[1] else { panic!() };
    let [Content::Sound(heard), Content::Text(question)] = &content[..] else { panic!("{content:?}") };
    assert_eq!((heard.len(), question.as_str()), (sound.len(), "\nWhat is it?"));
    assert!(heard.iter().zip(&sound).all(|(a, b)| (a - b).abs() < 1e-4));
    assert_eq!(request.conversation[2], text(Role::Assistant, "Noise."));
    // 24 000 samples a second: 1.5 s of 16 kHz noise are one second of it.
    let Item::Message { content, .. } = &request.conversation[3] else { panic!() };
    assert!(matches!(&content[..], [Content::Sound(heard)] if heard.len() == 16_000));
    let sampling = &request.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.seed), (0.0, 0.5, 7));
    assert_eq!((request.max_reply_tokens, request.thinking, request.thinking_budget), (9, Thinking::On, 64));
    let session = request.session;
    for event in [Event::Heard("words".into()), Event::Reasoning("a ".into()), Event::Reasoning("thought".into())] {
        asked.say(event).await;
    }
    asked.say(Event::Reply("It is ".into())).await;
    asked.say(Event::Reply("noise.".into())).await;
    asked.done().await;
    let answer = sent.answer().await;
    assert_eq!(answer.status, 200);
    let whole = answer.json();
    assert_eq!((&whole["object"], &whole["model"]), (&json!("chat.completion"), &json!("test-model")));
    let message =
        json!({"role": "assistant", "content": "It is noise.", "refusal": null, "reasoning_content": "a thought"});
    let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(whole["choices"], json!([choice]));
    let usage = json!({
        "prompt_tokens": 12, "completion_tokens": 6, "total_tokens": 18,
        "prompt_tokens_details": {"cached_tokens": 3, "audio_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 2, "audio_tokens": 0},
    });
    assert_eq!(whole["usage"], usage);
    // The engine forgets the visit.
    assert_eq!(soon("the closing", server.closed.recv()).await, Some(session));
}

#[tokio::test]
async fn chunks_have_the_shapes_that_clients_join() {
    let mut config = config();
    config.http.reasoning_field = "reasoning".into();
    let mut server = serve(config).await;
    let mut body = hello();
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    body["tools"] = json!([
        {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}},
        {"type": "function", "function": {"name": "door"}},
    ]);
    body["tool_choice"] = json!({"type": "function", "function": {"name": "clock"}});
    let sent = server.begin_post(PATH, &body).await;
    let asked = server.asked().await;
    let tool = json!([{"type": "function", "name": "clock", "parameters": {"type": "object"}}]);
    assert_eq!(serde_json::from_str::<Value>(&asked.request.tools).unwrap(), tool);
    asked.say(Event::Reasoning("hm".into())).await;
    asked.say(Event::Reply("One moment.".into())).await;
    asked.say(Event::ToolCall { name: "clock".into(), arguments: "{}".into() }).await;
    asked.done().await;
    let answer = sent.answer().await;
    assert!(answer.head.contains("content-type: text/event-stream"), "{}", answer.head);
    let chunks = chunks(&answer.events());
    let deltas: Vec<&Value> = chunks[..5].iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    assert_eq!(*deltas[0], json!({"role": "assistant", "content": ""}));
    assert_eq!(*deltas[1], json!({"reasoning": "hm"}));
    assert_eq!(*deltas[2], json!({"content": "One moment."}));
    let call = &deltas[3]["tool_calls"][0];
    assert_eq!((&call["index"], &call["type"]), (&json!(0), &json!("function")));
    assert_eq!(call["function"], json!({"name": "clock", "arguments": "{}"}));
    assert!(call["id"].as_str().unwrap().starts_with("call_"));
    let reasons: Vec<&Value> = chunks[..5].iter().map(|chunk| &chunk["choices"][0]["finish_reason"]).collect();
    assert_eq!(reasons, [&Value::Null, &Value::Null, &Value::Null, &Value::Null, &json!("tool_calls")]);
    assert_eq!((&chunks[5]["choices"], &chunks[5]["usage"]["total_tokens"]), (&json!([]), &json!(18)));
    assert_eq!(chunks.len(), 6);
}

/// As OpenAI's: the first chunk of a call names it, the others only go on.
#[tokio::test]
async fn a_call_is_told_while_it_is_written() {
    let mut server = serve(config()).await;
    let mut body = hello();
    body["stream"] = json!(true);
    body["tools"] = json!([{"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}]);
    let mut sent = server.begin_post(PATH, &body).await;
    let asked = server.asked().await;
    let delta = |delta: &str| Event::CallDelta { name: "clock".into(), delta: delta.into() };
    let whole = |arguments: &str| Event::ToolCall { name: "clock".into(), arguments: arguments.into() };
    asked.say(delta("{\"zone\"")).await;
    // Before the rest of it is known.
    let begun = sent.until("zone").await;
    asked.say(delta(":1}")).await;
    asked.say(whole("{\"zone\":1}")).await;
    asked.say(whole("{}")).await;
    asked.say(delta("{\"zo")).await;
    asked.say(Event::Done { finish: Finish::Length, usage: Usage::default(), timings: Timings::default() }).await;
    let answer = begun + &sent.until("[DONE]").await;
    let events: Vec<&str> = answer.split("\n\n").filter_map(|e| e.split_once("data: ")).map(|e| e.1.trim()).collect();
    let chunks = chunks(&events);
    let (last, chunks) = chunks[1..].split_last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    let calls: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]["tool_calls"][0]).collect();
    let told: Vec<_> = calls.iter().map(|call| (call["index"].as_u64().unwrap(), call["function"].clone())).collect();
    let begins = |arguments: &str| json!({"name": "clock", "arguments": arguments});
    let goes_on = json!({"arguments": ":1}"});
    assert_eq!(told, [(0, begins("{\"zone\"")), (0, goes_on), (1, begins("{}")), (2, begins("{\"zo"))]);
    let ids: Vec<Option<&str>> = calls.iter().map(|call| call["id"].as_str()).collect();
    assert!(ids[0].is_some() && ids[1].is_none() && ids[0] != ids[2], "{ids:?}");
    assert_eq!((&calls[0]["type"], &calls[1]["type"]), (&json!("function"), &Value::Null));

    // Not streamed, it is the same in one object, the call that was cut off included.
    let sent = server.begin_post(PATH, &hello()).await;
    let asked = server.asked().await;
    for event in [delta("{\"zone\""), delta(":1}"), whole("{\"zone\":1}"), delta("{\"zo")] {
        asked.say(event).await;
    }
    asked.say(Event::Done { finish: Finish::Length, usage: Usage::default(), timings: Timings::default() }).await;
    let whole = sent.answer().await.json();
    let choice = &whole["choices"][0];
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert_eq!((calls.len(), &calls[0]["function"]), (2, &begins("{\"zone\":1}")));
    assert_eq!((&calls[1]["function"], &choice["finish_reason"]), (&begins("{\"zo"), &json!("length")));
}

#[tokio::test]
async fn a_tools_result_names_its_function() {
    let mut server = serve(config()).await;
    let call = json!({"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{\"zone\":1}"}});
    let body = json!({"reasoning_effort": "none", "messages": [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]});
    let sent = server.begin_post(PATH, &body).await;
    let asked = server.asked().await;
    let call = Item::ToolCall { name: "clock".into(), arguments: "{\"zone\":1}".into() };
    let result = Item::ToolResult { name: "clock".into(), output: "noon".into() };
    assert_eq!(asked.request.conversation, [text(Role::User, "What time is it?"), call, result]);
    assert_eq!((asked.request.thinking, asked.request.thinking_budget), (Thinking::Off, 0));
    asked.say(Event::ToolCall { name: "door".into(), arguments: "{}".into() }).await;
    asked.done().await;
    let whole = sent.answer().await.json();
    let choice = &whole["choices"][0];
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&Value::Null, &json!("tool_calls")));
    assert_eq!(choice["message"]["tool_calls"][0]["function"]["name"], "door");
}

#[tokio::test]
async fn a_stop_sequence_ends_the_turn_and_its_cost_is_told() {
    for stream in [false, true] {
        let mut server = serve(config()).await;
        let mut body = hello();
        body["stop"] = json!(["END", "\n\n"]);
        body["stream"] = json!(stream);
        body["stream_options"] = json!({"include_usage": true});
        let sent = server.begin_post(PATH, &body).await;
        let asked = server.asked().await;
        for piece in ["One, two. E", "N", "D and more"] {
            asked.say(Event::Reply(piece.into())).await;
        }
        soon("the cancellation", async {
            while !asked.cancelled.load(std::sync::atomic::Ordering::Acquire) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let usage = Usage { reply_tokens: 5, ..Usage::default() };
        asked.say(Event::Reply("even more".into())).await;
        asked.say(Event::Done { finish: Finish::Cancelled, usage, timings: Timings::default() }).await;
        let answer = sent.answer().await;
        if stream {
            let chunks = chunks(&answer.events());
            let said: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
            assert_eq!(said, "One, two. ");
            assert_eq!(chunks[chunks.len() - 2]["choices"][0]["finish_reason"], "stop");
            assert_eq!(chunks[chunks.len() - 1]["usage"]["completion_tokens"], 5);
        } else {
            let whole = answer.json();
            assert_eq!(whole["choices"][0]["message"]["content"], "One, two. ");
            assert_eq!(
                (&whole["choices"][0]["finish_reason"], &whole["usage"]["completion_tokens"]),
                (&json!("stop"), &json!(5))
            );
        }
    }
}

#[tokio::test]
async fn limits_bound_reasoning_and_reply_together() {
    let mut server = serve(config()).await;
    for (limits, budget, reply) in [
        (json!({"max_completion_tokens": 40}), 20, 20),
        (json!({"max_completion_tokens": 1}), 0, 1),
        (json!({"max_completion_tokens": 10_000}), 160, 512),
        (json!({"max_tokens": 30}), 160, 30),
        (json!({}), 160, 512),
    ] {
        let mut body = hello();
        body.as_object_mut().unwrap().extend(limits.as_object().unwrap().clone());
        let sent = server.begin_post(PATH, &body).await;
        let asked = server.asked().await;
        assert_eq!((asked.request.thinking_budget, asked.request.max_reply_tokens), (budget, reply), "{limits}");
        asked.say(Event::Done { finish: Finish::Length, usage: Usage::default(), timings: Timings::default() }).await;
        assert_eq!(sent.answer().await.json()["choices"][0]["finish_reason"], "length");
    }
}

#[tokio::test]
async fn a_client_that_vanishes_takes_its_turn_along() {
    let mut config = config();
    config.server.max_sessions = 1;
    let mut server = serve(config).await;
    for stream in [true, false] {
        let mut body = hello();
        body["stream"] = json!(stream);
        let mut sent = server.begin_post(PATH, &body).await;
        let asked = server.asked().await;
        asked.say(Event::Reply("Well".into())).await;
        if stream {
            sent.until("Well").await;
        }
        drop(sent);
        asked.dropped().await;
        soon("the closing", server.closed.recv()).await;
    }
    // The place is free again.
    let sent = server.begin_post(PATH, &hello()).await;
    server.asked().await.done().await;
    assert_eq!(sent.answer().await.status, 200);
}

#[tokio::test]
async fn a_full_server_says_when_to_come_again() {
    let mut config = config();
    config.server.max_sessions = 1;
    let mut server = serve(config).await;
    let first = server.begin_post(PATH, &hello()).await;
    let asked = server.asked().await;
    let refused = server.begin_post(PATH, &hello()).await.answer().await;
    assert_eq!((refused.status, refused.refusal().0.as_str()), (503, "overloaded"));
    assert!(refused.head.contains("retry-after: 5"), "{}", refused.head);
    // A session is no better off.
    let Err(tokio_tungstenite::tungstenite::Error::Http(refused)) = server.connect_with(&[]).await else { panic!() };
    assert_eq!(refused.status(), 503);
    asked.done().await;
    assert_eq!(first.answer().await.status, 200);
    soon("the closing", server.closed.recv()).await;
    *server.engine.refusal.lock().unwrap() = Some(EngineError::Overloaded { waiting: 3 });
    let refused = server.begin_post(PATH, &hello()).await.answer().await;
    assert_eq!((refused.status, refused.refusal().0.as_str()), (503, "overloaded"));
    assert!(refused.head.contains("retry-after: 5"), "{}", refused.head);
}

#[tokio::test]
async fn what_the_engine_fails_at_is_told_by_status_or_in_the_stream() {
    let mut server = serve(config()).await;
    let streamed = json!({"stream": true, "messages": [{"role": "user", "content": "Hello"}]});
    for body in [&hello(), &streamed] {
        let sent = server.begin_post(PATH, body).await;
        server.asked().await.say(Event::Failed(EngineError::ContextFull { tokens: 9, limit: 8 })).await;
        let refused = sent.answer().await;
        assert_eq!((refused.status, refused.refusal().0.as_str()), (400, "context_length_exceeded"));
    }
    let sent = server.begin_post(PATH, &streamed).await;
    let asked = server.asked().await;
    asked.say(Event::Reply("Well".into())).await;
    asked.say(Event::Failed(EngineError::Model("broken".into()))).await;
    let answer = sent.answer().await;
    let last: Value = serde_json::from_str(answer.events().last().unwrap()).unwrap();
    assert_eq!((answer.status, &last["error"]["type"]), (200, &json!("server_error")));
    // An engine that dies without a word is no endless wait.
    let sent = server.begin_post(PATH, &hello()).await;
    drop(server.asked().await);
    assert_eq!(sent.answer().await.status, 500);
}

async fn refused(server: &Server, body: &Value) -> (String, Option<String>) {
    let answer = server.begin_post(PATH, body).await.answer().await;
    assert_eq!(answer.status, 400, "{answer:?}");
    answer.refusal()
}

#[tokio::test]
async fn what_cannot_be_obeyed_is_refused_by_name() {
    let mut config = config();
    config.http.max_body_bytes = 200_000;
    config.limits.conversation_bytes = 2000;
    config.limits.conversation_seconds = 2.0;
    let mut server = serve(config).await;
    let with = |key: &str, value: Value| {
        let mut body = hello();
        body[key] = value;
        body
    };
    let content = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
    let audio = |data: &str, format: &str| {
        content(json!({"type": "input_audio", "input_audio": {"data": data, "format": format}}))
    };
    let silence = base64(&wav(&vec![0.0; 40_000]));
    for (body, code, param) in [
        (json!({}), "invalid_value", None),
        (json!({"messages": []}), "invalid_value", Some("messages")),
        (json!({"messages": [{"role": "user", "content": ""}]}), "invalid_value", Some("messages")),
        (json!({"messages": [{"role": "robot", "content": "x"}]}), "invalid_value", Some("messages[0].role")),
        (
            json!({"messages": [{"role": "tool", "content": "x"}]}),
            "missing_required_parameter",
            Some("messages[0].tool_call_id"),
        ),
        (json!({"messages": [{"role": "user", "content": 5}]}), "invalid_value", Some("messages[0].content")),
        (with("n", json!(2)), "invalid_value", Some("n")),
        (with("logprobs", json!(true)), "invalid_value", Some("logprobs")),
        (with("temperature", json!(-1)), "invalid_value", Some("temperature")),
        (with("temperature", json!("hot")), "invalid_value", Some("temperature")),
        (with("top_p", json!(0)), "invalid_value", Some("top_p")),
        (with("max_tokens", json!(0)), "invalid_value", Some("max_tokens")),
        (with("stop", json!(["a", "b", "c", "d", "e"])), "invalid_value", Some("stop")),
        (with("tool_choice", json!("perhaps")), "invalid_value", Some("tool_choice")),
        (with("response_format", json!({"type": "json_object"})), "invalid_value", Some("response_format")),
        (with("reasoning_effort", json!("extreme")), "invalid_value", Some("reasoning_effort")),
        (
            content(json!({"type": "image_url", "image_url": {"url": "x"}})),
            "invalid_value",
            Some("messages[0].content[0]"),
        ),
        (audio("!!", "wav"), "invalid_value", Some("messages[0].content[0].input_audio.data")),
        (audio("AAAA", "wav"), "invalid_audio", Some("messages[0].content[0].input_audio")),
        (audio("AAAA", "pcm16"), "invalid_audio", Some("messages[0].content[0].input_audio")),
        (audio(&silence, "wav"), "invalid_audio", Some("messages[0].content[0].input_audio")),
        (
            content(json!({"type": "text", "text": "x".repeat(3000)})),
            "context_length_exceeded",
            Some("messages[0].content[0]"),
        ),
    ] {
        let found = refused(&server, &body).await;
        assert_eq!(
            (found.0.as_str(), found.1.as_deref().filter(|p| *p != ".")),
            (code, param),
            "{:.200}",
            body.to_string()
        );
    }
    let broken = server.send("POST", PATH, "application/json", b"{\"messages\": [").await.answer().await;
    assert_eq!((broken.status, broken.refusal().0.as_str()), (400, "invalid_json"));
    let large = server.send("POST", PATH, "application/json", &vec![b' '; 300_000]).await.answer().await;
    assert_eq!((large.status, large.refusal().0.as_str()), (413, "request_too_large"));
    assert!(server.asked.try_recv().is_err(), "nothing of this reaches the engine");
    // And it still serves.
    let sent = server.begin_post(PATH, &hello()).await;
    server.asked().await.say(done()).await;
    assert_eq!(sent.answer().await.status, 200);
}
