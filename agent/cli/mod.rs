//! The command line: what each subcommand does with the library.

mod ask;
mod bench;
mod eval;
mod listen;
mod remote;
mod serve;
mod terminal;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Layers, Words};
use crate::engine::local::{Local, LocalOptions};
use crate::engine::minds::Minds;
use crate::fetch::{self, FetchOptions};

/// Tokens of past conversations that the engine keeps: 64 Ki tokens are 1.6 GB on nano.
const REMEMBERED_TOKENS: usize = 65_536;

/// A live listening agent: it hears the sound, reasons while you speak, and streams its reasoning and reply.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the pages /, /captions and /calls, and all wires: Realtime, WebRTC, WHIP, chat completions, transcriptions, phone streams.
    Serve {
        #[command(flatten)]
        settings: Settings,
    },
    /// Listen to a sound file (wav, flac, ogg, opus, mp3) and answer it.
    Ask(ask::Ask),
    /// Listen to the microphone (feature `mic`) or to a file as it is spoken, here or at a server.
    Listen(listen::Listen),
    /// Bring a checkpoint to this machine: nano, step-audio-r1, step-audio-r1.1, step-audio-2-mini, or a Hugging Face id.
    Fetch {
        /// Which.
        #[arg(default_value = "nano")]
        model: String,
    },
    /// Measure the model on this machine.
    Bench(bench::Bench),
    /// Measure what the model understands, by files of tasks.
    Eval(eval::Eval),
    /// Print the whole effective configuration, secrets hidden.
    Config {
        #[command(flatten)]
        settings: Settings,
    },
}

/// Where the configuration comes from: settings > environment > file > preset.
#[derive(Debug, Clone, Default, Args)]
struct Settings {
    /// A preset to begin with: nano, step-audio-r1, step-audio-2-mini.
    #[arg(long)]
    preset: Option<String>,
    /// A TOML file; see configs/ for all keys.
    #[arg(long, env = "HEARKEN_CONFIG")]
    config: Option<PathBuf>,
    /// A checkpoint's directory, or a name or id as `fetch` takes it.
    #[arg(long)]
    model: Option<String>,
    /// auto, cpu, cuda:N or metal.
    #[arg(long)]
    device: Option<String>,
    /// A single key, such as `--set server.listen=0.0.0.0:8080`; may be given again.
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE, such as server.listen=127.0.0.1:9000")?;
    Ok((key.trim().into(), value.trim().into()))
}

impl Settings {
    fn load(&self) -> Result<Config> {
        let read = |path: &PathBuf| -> Result<(String, String)> {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
            Ok((name, text))
        };
        let file = self.config.as_ref().map(read).transpose()?;
        let mut flags = self.set.clone();
        flags.extend(self.device.iter().map(|d| ("model.device".into(), d.clone())));
        flags.extend(self.model.iter().map(|m| {
            let key = if Path::new(m).exists() { "model.path" } else { "model.name" };
            (key.into(), m.clone())
        }));
        let layers = Layers {
            preset: self.preset.as_deref(),
            file: file.as_ref().map(|(name, text)| (name.as_str(), text.as_str())),
            // What is not UTF-8 is not ours.
            environment: std::env::vars_os()
                .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
            flags,
        };
        let mut config = Config::load(&layers)?;
        // A model that is named here is not one of a path that a file or the environment names.
        if self.model.as_ref().is_some_and(|model| !Path::new(model).exists()) {
            config.model.path = None;
        }
        use_threads(config.model.threads);
        Ok(config)
    }
}

/// Tells rayon and candle how many threads to compute with. Without the variable, candle reads /proc/cpuinfo at each matrix product.
fn use_threads(count: usize) {
    const VARIABLE: &str = "RAYON_NUM_THREADS";
    if count == 0 && std::env::var_os(VARIABLE).is_some() {
        return;
    }
    let count = if count > 0 { count } else { std::thread::available_parallelism().map_or(1, usize::from) };
    // SAFETY: settings are loaded once, at the beginning of a command, before it starts any thread that could read the environment.
    unsafe { std::env::set_var(VARIABLE, count.to_string()) };
}

/// Runs one command to its end.
///
/// # Errors
/// What went wrong, in words for the person at the terminal.
pub fn run(arguments: Arguments) -> Result<()> {
    match arguments.command {
        Command::Serve { settings } => serve::serve(settings.load()?),
        Command::Ask(ask) => ask.run(),
        Command::Listen(listen) => listen.run(),
        Command::Fetch { model } => {
            let path = fetch::fetch(&model, &FetchOptions::from_env(), &mut *fetch::terminal())?;
            println!("{}", path.display());
            Ok(())
        }
        Command::Bench(bench) => bench.run(),
        Command::Eval(eval) => eval.run(),
        Command::Config { settings } => {
            print!("{}", settings.load()?.effective_toml());
            Ok(())
        }
    }
}

/// Where the configured checkpoint lies on this machine.
fn checkpoint(config: &Config) -> Result<PathBuf> {
    match &config.model.path {
        Some(path) => Ok(path.clone()),
        None => Ok(fetch::locate(&config.model.name, &FetchOptions::from_env())?),
    }
}

/// Starts the engine that the configuration asks for, with as many minds.
fn engine(config: &Config) -> Result<Minds> {
    Ok(Minds::new(Arc::new(local(config, true)?), &config.thinking))
}

/// The engine by itself, its sequences together in one pass or, for comparison, one by one.
fn local(config: &Config, batched: bool) -> Result<Local> {
    let path = checkpoint(config)?;
    let options = LocalOptions {
        path: path.clone(),
        device: config.model.device.clone(),
        words: config.model.words == Words::Beside,
        // What a session gives up counts until the compute thread has seen it, and each mind is a turn.
        turns: 2 * config.server.max_sessions * config.thinking.minds.max(1),
        remembered_tokens: REMEMBERED_TOKENS,
        kv: config.model.kv,
        batched,
    };
    Local::start(options).with_context(|| format!("the model in {} cannot be used", path.display()))
}

/// Sends log lines to stderr as the configuration says; `RUST_LOG` overrides the level.
fn log(config: &Config) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(quieter(&config.log.level)));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call, as tests make, finds the first one's subscriber.
    drop(if config.log.json { lines.json().try_init() } else { lines.try_init() });
}

/// symphonia tells of every Ogg file that it opens. What the level says of that crate itself holds.
fn quieter(level: &str) -> String {
    match level {
        "off" | "error" | "warn" => level.to_owned(),
        level => format!("symphonia=warn,{level}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::quieter;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_crate_that_talks_about_every_file_is_heard_when_it_is_asked_for() {
        for (level, wanted) in [
            ("info", "ours,its warning,"),
            ("info,symphonia=info", "ours,its line,its warning,"),
            ("warn", "its warning,"),
            ("error", ""),
        ] {
            let lines = Lines::default();
            let writer = lines.clone();
            let told =
                tracing_subscriber::fmt().with_env_filter(quieter(level)).with_writer(move || writer.clone()).finish();
            tracing::subscriber::with_default(told, || {
                tracing::info!(target: "hearken", "ours");
                tracing::info!(target: "symphonia_format_ogg::demuxer", "its line");
                tracing::warn!(target: "symphonia_format_ogg::demuxer", "its warning");
            });
            let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
            let told: String = ["ours", "its line", "its warning"]
                .iter()
                .filter(|line| text.contains(**line))
                .map(|line| format!("{line},"))
                .collect();
            assert_eq!(told, wanted, "{level}");
        }
    }
}
