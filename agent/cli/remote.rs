//! A server somewhere, as a Realtime client sees it: what `hearken listen` and `hearken ask --server` speak to.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::engine::{EngineError, Event, Finish, Timings, Usage};

/// Which server, and how to get in.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// A server that runs already, such as ws://127.0.0.1:8080 or wss://example.org.
    #[arg(long)]
    pub(super) server: Option<String>,
    /// The token it asks for.
    #[arg(long, env = "HEARKEN_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

/// A connection.
pub(super) struct Remote {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Remote {
    /// Connects, and asks for all that a terminal shows. Sound is PCM16 at this rate.
    pub(super) async fn connect(server: &str, target: &Target, mut session: Value, rate: u32) -> Result<Self> {
        let server = server.trim_end_matches('/');
        let server = server.strip_prefix("http").map_or(server.to_owned(), |rest| format!("ws{rest}"));
        let mut request = format!("{server}/v1/realtime").into_client_request()?;
        if let Some(token) = &target.token {
            request.headers_mut().insert("Authorization", format!("Bearer {token}").parse()?);
        }
        let socket = match connect_async(request).await {
            Ok((socket, _)) => socket,
            Err(Error::Http(refused)) => {
                let body: Value =
                    serde_json::from_slice(refused.body().as_deref().unwrap_or_default()).unwrap_or_default();
                let why = body["error"]["message"].as_str().unwrap_or("it says no more");
                bail!("{server} refuses ({}): {why}", refused.status());
            }
            Err(error) => return Err(error).with_context(|| format!("cannot reach {server}")),
        };
        let mut this = Self { socket };
        session["type"] = json!("realtime");
        session["include"] = json!(["reasoning.text", "hearken.timings"]);
        session["audio"]["input"]["format"] = json!({"type": "audio/pcm", "rate": rate});
        this.send(json!({"type": "session.update", "session": session})).await?;
        Ok(this)
    }

    pub(super) async fn send(&mut self, event: Value) -> Result<()> {
        Ok(self.socket.send(Message::text(event.to_string())).await?)
    }

    pub(super) async fn sound(&mut self, bytes: Vec<u8>) -> Result<()> {
        Ok(self.socket.send(Message::binary(bytes)).await?)
    }

    /// The next event. Nothing is lost when this is given up.
    pub(super) async fn event(&mut self) -> Result<Value> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text)?),
                Some(Ok(Message::Close(Some(frame)))) => {
                    bail!("the server has hung up: {} {}", frame.code, frame.reason)
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => bail!("the server has hung up"),
            }
        }
    }

    pub(super) async fn close(mut self) {
        // It may have gone already.
        drop(self.socket.close(None).await);
    }
}

/// PCM16 from samples in −1..1.
pub(super) fn pcm16(samples: impl IntoIterator<Item = f32>) -> Vec<u8> {
    samples.into_iter().flat_map(|x| ((x.clamp(-1.0, 1.0) * 32_767.0) as i16).to_le_bytes()).collect()
}

/// What the local engine would have said, of an event of the wire.
///
/// # Errors
/// The server's `error`.
pub(super) fn as_local(event: &Value) -> Result<Option<Event>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(Some(match event["type"].as_str().unwrap_or_default() {
        "conversation.item.input_audio_transcription.completed" => Event::Heard(text(&event["transcript"])),
        "response.reasoning_text.delta" => Event::Reasoning(text(&event["delta"])),
        "response.output_text.delta" => Event::Reply(text(&event["delta"])),
        "response.function_call_arguments.done" => {
            Event::ToolCall { name: text(&event["name"]), arguments: text(&event["arguments"]) }
        }
        "response.done" => done(&event["response"]),
        "error" => return Err(anyhow!("{}", text(&event["error"]["message"]))),
        _ => return Ok(None),
    }))
}

fn done(response: &Value) -> Event {
    let finish = match response["status"].as_str() {
        Some("failed") => {
            let message = response["status_details"]["error"]["message"].as_str().unwrap_or("it does not say why");
            return Event::Failed(EngineError::Model(message.to_owned()));
        }
        Some("cancelled") => Finish::Cancelled,
        Some("incomplete") => Finish::Length,
        _ => Finish::Stop,
    };
    let (usage, times) = (&response["usage"], &response["timings_ms"]);
    let count = |value: &Value| value.as_u64().unwrap_or(0) as usize;
    let (input, output) = (&usage["input_token_details"], &usage["output_token_details"]);
    let reasoning_tokens = count(&output["reasoning_tokens"]);
    let usage = Usage {
        text_tokens: count(&input["text_tokens"]),
        sound_tokens: count(&input["audio_tokens"]),
        cached_tokens: count(&input["cached_tokens"]),
        reasoning_tokens,
        reply_tokens: count(&usage["output_tokens"]).saturating_sub(reasoning_tokens),
        ..Usage::default()
    };
    let time = |name: &str| {
        let ms = times[name].as_f64().filter(|ms| (0.0..1e9).contains(ms)).unwrap_or(0.0);
        Duration::from_secs_f64(ms / 1e3)
    };
    let timings = Timings {
        queued: time("queued"),
        encode: time("encode"),
        words: time("words"),
        prefill: time("prefill"),
        think: time("think"),
        reply: time("reply"),
    };
    Event::Done { finish, usage, timings }
}
