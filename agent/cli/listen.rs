//! `hearken listen`: the microphone or a file, live, through the same WebSocket as everybody's.
//!
//! It is a Realtime client; without `--server` it starts a server of its own on a free port, so that there is one live path and no other.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Settings;
use super::remote::{Remote, Target, as_local, pcm16};
use super::terminal::Terminal;
use crate::audio::{RATE, file};
use crate::transport;

/// Sound that may wait for the socket: 2 s in packets of 10 ms. More is dropped, as a live microphone must not wait.
const WAITING: usize = 200;
/// What a file is sent in.
const PACKET: Duration = Duration::from_millis(20);
/// Silence behind a file, packets: the turn is over then, whatever the server waits for.
const SILENCE: usize = 150;

#[derive(Debug, Args)]
pub(super) struct Listen {
    #[command(flatten)]
    target: Target,
    /// A sound file instead of the microphone, as fast as it was spoken; it ends with the last answer.
    #[arg(long)]
    file: Option<PathBuf>,
    /// One JSON object a line: the server's events as they come.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

/// What is sent: packets of PCM16 and their rate. A microphone is open for as long as this lives.
struct Source {
    packets: mpsc::Receiver<Vec<u8>>,
    rate: u32,
    #[cfg(feature = "mic")]
    _stream: Option<cpal::Stream>,
}

impl Listen {
    pub(super) fn run(&self) -> Result<()> {
        let mut config = self.settings.load()?;
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(async {
            let source = match &self.file {
                Some(path) => {
                    let sound = file::read(path, config.limits.file_seconds);
                    from_file(sound.with_context(|| format!("cannot listen to {}", path.display()))?)
                }
                None => microphone()?,
            };
            let server = match &self.target.server {
                Some(server) => server.clone(),
                None => {
                    let engine = Arc::new(tokio::task::block_in_place(|| super::engine(&config))?);
                    let listener = TcpListener::bind("127.0.0.1:0").await?;
                    let address = listener.local_addr()?;
                    // Nobody else comes in here.
                    config.server.api_tokens.clear();
                    config.webrtc.enabled = false;
                    let serving = transport::serve(listener, Arc::new(config), engine, std::future::pending());
                    tokio::spawn(async move {
                        if let Err(error) = serving.await {
                            eprintln!("hearken: {error}");
                        }
                    });
                    format!("ws://{address}")
                }
            };
            self.talk(&server, source).await
        })
    }

    async fn talk(&self, server: &str, mut source: Source) -> Result<()> {
        let mut remote = Remote::connect(server, &self.target, json!({}), source.rate).await?;
        let mut terminal = Terminal::new(false);
        let (mut is_over, mut turns) = (false, Turns::default());
        eprintln!("listening; Ctrl-C ends");
        while !(is_over && turns.are_answered()) {
            tokio::select! {
                packet = source.packets.recv(), if !is_over => match packet {
                    Some(bytes) => remote.sound(bytes).await?,
                    None => is_over = true,
                },
                event = remote.event() => {
                    let event = event?;
                    turns.count(&event);
                    if self.json {
                        terminal.raw(&event)?;
                    } else if let Some(event) = as_local(&event)? {
                        terminal.show(&event)?;
                    }
                }
                _ = tokio::signal::ctrl_c() => break,
            }
        }
        remote.close().await;
        Ok(())
    }
}

/// How far the conversation is.
#[derive(Default)]
struct Turns {
    begun: usize,
    ended: usize,
    answered: usize,
}

impl Turns {
    fn count(&mut self, event: &Value) {
        match event["type"].as_str().unwrap_or_default() {
            "input_audio_buffer.speech_started" => self.begun += 1,
            "input_audio_buffer.speech_stopped" => self.ended += 1,
            "response.done" => self.answered += 1,
            _ => {}
        }
    }

    fn are_answered(&self) -> bool {
        self.begun == self.ended && self.answered >= self.ended
    }
}

/// A file, packet by packet in its own time.
fn from_file(sound: Vec<f32>) -> Source {
    let (out, packets) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let length = RATE as usize * PACKET.as_millis() as usize / 1000;
        let silence = std::iter::repeat_n(vec![0.0; length], SILENCE);
        let mut at = Instant::now();
        for packet in sound.chunks(length).map(<[f32]>::to_vec).chain(silence) {
            at += PACKET;
            tokio::time::sleep_until(at).await;
            if out.send(pcm16(packet)).await.is_err() {
                return;
            }
        }
    });
    Source {
        packets,
        rate: RATE,
        #[cfg(feature = "mic")]
        _stream: None,
    }
}

#[cfg(not(feature = "mic"))]
fn microphone() -> Result<Source> {
    anyhow::bail!(
        "this build has no microphone (--file CLIP sends a file): build with `cargo build --release --features mic` (on Debian: apt-get install libasound2-dev)"
    )
}

/// The default microphone: its first channel, at the first of our rates that it has.
#[cfg(feature = "mic")]
fn microphone() -> Result<Source> {
    use anyhow::anyhow;
    use cpal::traits::{DeviceTrait as _, HostTrait as _, StreamTrait as _};
    let device = cpal::default_host().default_input_device().ok_or_else(|| anyhow!("no microphone is there"))?;
    let ranges: Vec<_> = device.supported_input_configs()?.collect();
    let fits = |rate: &u32| {
        let range = ranges.iter().find(|r| (r.min_sample_rate()..=r.max_sample_rate()).contains(rate));
        range.map(|r| (r.channels(), *rate))
    };
    let found = [16_000, 24_000, 48_000].iter().find_map(fits);
    let (channels, rate) = found.ok_or_else(|| anyhow!("the microphone has none of 16, 24 and 48 kHz"))?;
    let config = cpal::StreamConfig { channels, sample_rate: rate, buffer_size: cpal::BufferSize::Default };
    let (sound, packets) = mpsc::channel(WAITING);
    let take = move |frames: &[f32], _: &cpal::InputCallbackInfo| {
        drop(sound.try_send(pcm16(frames.chunks_exact(channels.into()).map(|frame| frame[0]))));
    };
    let stream = device.build_input_stream(config, take, |e| eprintln!("hearken: microphone: {e}"), None)?;
    stream.play()?;
    Ok(Source { packets, rate, _stream: Some(stream) })
}
