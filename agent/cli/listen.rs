//! `hearken listen`: the microphone, live, through the same WebSocket as everybody's.
//!
//! It is a Realtime client; without `--server` it starts a server of its own on a free port, so that there is one live path and no other.

use anyhow::Result;
use clap::Args;

use super::Settings;

#[derive(Debug, Args)]
pub(super) struct Listen {
    /// A server that runs already, such as ws://127.0.0.1:8080; without it, one is started.
    #[arg(long)]
    server: Option<String>,
    /// The token it asks for.
    #[arg(long, env = "HEARKEN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// One JSON object a line: the server's events as they come.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

impl Listen {
    #[cfg(not(feature = "mic"))]
    pub(super) fn run(&self) -> Result<()> {
        anyhow::bail!(
            "this build has no microphone: build with `cargo build --release --features mic` (on Debian: apt-get install libasound2-dev)"
        )
    }

    #[cfg(feature = "mic")]
    pub(super) fn run(&self) -> Result<()> {
        live::run(self)
    }
}

#[cfg(feature = "mic")]
mod live {
    use std::io::Write as _;
    use std::sync::Arc;

    use anyhow::{Context as _, Result, anyhow};
    use cpal::traits::{DeviceTrait as _, HostTrait as _, StreamTrait as _};
    use futures_util::{SinkExt as _, StreamExt as _};
    use serde_json::{Value, json};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;
    use tokio_tungstenite::connect_async;
    use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _};

    use super::Listen;
    use crate::transport;

    /// Sound that may wait for the socket: 2 s in callbacks of 10 ms. More is dropped, as a live microphone must not wait.
    const WAITING: usize = 200;

    pub(super) fn run(listen: &Listen) -> Result<()> {
        let config = listen.settings.load()?;
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(async {
            let server = match &listen.server {
                Some(server) => server.trim_end_matches('/').replacen("http", "ws", 1),
                None => {
                    let engine = Arc::new(tokio::task::block_in_place(|| super::super::engine(&config))?);
                    let listener = TcpListener::bind("127.0.0.1:0").await?;
                    let address = listener.local_addr()?;
                    tokio::spawn(transport::serve(listener, Arc::new(config), engine, std::future::pending()));
                    format!("ws://{address}")
                }
            };
            talk(listen, &server).await
        })
    }

    async fn talk(listen: &Listen, server: &str) -> Result<()> {
        let mut request = format!("{server}/v1/realtime").into_client_request()?;
        if let Some(token) = &listen.token {
            request.headers_mut().insert("Authorization", format!("Bearer {token}").parse()?);
        }
        let (socket, _) = connect_async(request).await.with_context(|| format!("cannot reach {server}"))?;
        let (mut out, mut events) = socket.split();
        let (sound, mut waiting) = mpsc::channel::<Vec<u8>>(WAITING);
        let (_stream, rate) = microphone(sound)?;
        let session = json!({"type": "session.update", "session": {"type": "realtime", "include": ["reasoning.text"],
            "audio": {"input": {"format": {"type": "audio/pcm", "rate": rate}}}}});
        out.send(Message::text(session.to_string())).await?;
        eprintln!("listening; Ctrl-C ends");
        loop {
            tokio::select! {
                Some(bytes) = waiting.recv() => out.send(Message::binary(bytes)).await?,
                event = events.next() => match event {
                    Some(Ok(Message::Text(text))) => show(listen.json, &text)?,
                    Some(Ok(_)) => {}
                    Some(Err(e)) => return Err(e.into()),
                    None => return Err(anyhow!("the server has hung up")),
                },
                _ = tokio::signal::ctrl_c() => return Ok(()),
            }
        }
    }

    /// Opens the default microphone: its first channel as PCM16, at the first of our rates that it has.
    fn microphone(sound: mpsc::Sender<Vec<u8>>) -> Result<(cpal::Stream, u32)> {
        let device = cpal::default_host().default_input_device().ok_or_else(|| anyhow!("no microphone is there"))?;
        let ranges: Vec<_> = device.supported_input_configs()?.collect();
        let fits = |rate: &u32| {
            let range = ranges.iter().find(|r| (r.min_sample_rate()..=r.max_sample_rate()).contains(rate));
            range.map(|r| (r.channels(), *rate))
        };
        let found = [16_000, 24_000, 48_000].iter().find_map(fits);
        let (channels, rate) = found.ok_or_else(|| anyhow!("the microphone has none of 16, 24 and 48 kHz"))?;
        let config = cpal::StreamConfig { channels, sample_rate: rate, buffer_size: cpal::BufferSize::Default };
        let take = move |frames: &[f32], _: &cpal::InputCallbackInfo| {
            let first = frames.chunks_exact(channels.into()).map(|f| (f[0].clamp(-1.0, 1.0) * 32_767.0) as i16);
            drop(sound.try_send(first.flat_map(i16::to_le_bytes).collect()));
        };
        let stream = device.build_input_stream(config, take, |e| eprintln!("hearken: microphone: {e}"), None)?;
        stream.play()?;
        Ok((stream, rate))
    }

    fn show(json: bool, text: &str) -> Result<()> {
        let event: Value = serde_json::from_str(text)?;
        let mut out = std::io::stdout().lock();
        if json {
            writeln!(out, "{event}")?;
            return Ok(());
        }
        let field = |name: &str| event[name].as_str().unwrap_or_default();
        match field("type") {
            "conversation.item.input_audio_transcription.completed" => {
                writeln!(out, "\x1b[2mheard: {}", field("transcript"))?
            }
            "response.reasoning_text.delta" => write!(out, "\x1b[2m{}\x1b[0m", field("delta"))?,
            "response.output_text.delta" => write!(out, "\x1b[0m{}", field("delta"))?,
            "response.reasoning_text.done" | "response.done" => writeln!(out, "\x1b[0m")?,
            "error" => eprintln!("hearken: {}", event["error"]["message"].as_str().unwrap_or_default()),
            _ => {}
        }
        Ok(out.flush()?)
    }
}
