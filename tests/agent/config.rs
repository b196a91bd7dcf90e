//! The configuration refuses what it does not know, and says which key.

use hearken::config::{Config, Layers, PRESETS, Secret, Words};

fn load(file: &str) -> Result<Config, String> {
    Config::load(&Layers { file: Some(("my.toml", file)), ..Layers::default() }).map_err(|e| e.to_string())
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
}

#[test]
fn the_default_preset_is_the_default_and_names_every_key() {
    assert_eq!(Config::load(&Layers::default()).unwrap(), Config::default());
    let (_, nano) = PRESETS[0];
    for line in Config::default().effective_toml().lines().filter_map(|l| l.split_once(" = ")) {
        assert!(nano.contains(&format!("{} = ", line.0)), "configs/nano.toml does not show {}", line.0);
    }
}

#[test]
fn every_preset_is_valid() {
    for (name, _) in PRESETS {
        let config = Config::load(&Layers { preset: Some(name), ..Layers::default() }).unwrap();
        assert_eq!(config.model.words == Words::Beside, *name == "nano");
        assert!(!config.model.name.is_empty());
    }
    assert!(Config::load(&Layers { preset: Some("gpt"), ..Layers::default() }).is_err());
}

#[test]
fn complaints_name_their_key() {
    for (file, key) in [
        ("[server]\nlissen = \"x\"", "lissen"),
        ("[sever]\n", "sever"),
        ("[server]\nmax_sessions = \"many\"", "server.max_sessions"),
        ("[server]\nmax_sessions = 0", "server.max_sessions"),
        ("[log]\nlevel = \"warning\"", "log.level"),
        ("[server]\nlisten = \"0.0.0.0:80\"", "server.api_tokens"),
        ("[server]\napi_tokens = [\"\"]", "server.api_tokens"),
        ("[model]\ndevice = \"tpu\"", "model.device"),
        ("[model]\nwords = \"both\"", "model.words"),
        ("[sampling]\ntop_p = 2.0", "sampling.top_p"),
        ("[sampling]\ntemperature = nan", "sampling.temperature"),
        ("[thinking]\neffort = \"much\"", "thinking.effort"),
        ("[voice]\nthreshold = 1.0", "voice.threshold"),
        ("[voice]\nmax_segment_seconds = 30.0", "voice.max_segment_seconds"),
        ("[limits]\nring_seconds = inf", "limits.ring_seconds"),
        ("[webrtc]\nlisten_tcp = \"127.0.0.1:8080\"", "webrtc.listen_tcp"),
        ("[calls]\nrecord = true\n[journal]\nenabled = false", "calls.record"),
        ("[calls]\nrecord = true\nredact = true", "calls.record"),
        ("[calls]\nrecord = true\n[journal]\nwords = false", "calls.record"),
        ("[calls]\nrecord = true\n[journal]\nredact = ['\\d']", "calls.record"),
        ("[[calls.alerts]]\nname = \"x\"\nwords = [\"cancel\"]\nmoods = [\"angry\"]", "calls.alerts"),
        ("[[calls.alerts]]\nname = \"x\"\nwords = [\"?\"]", "calls.alerts"),
        ("[[calls.alerts]]\nname = \"x\"\nparty = \"agent\"\nsilence_seconds = 20.0", "calls.alerts"),
        ("[calls]\nnotes = false\n[[calls.alerts]]\nname = \"x\"\nrisks = [\"high\"]", "calls.alerts"),
        ("[calls]\nredact = true\n[[calls.alerts]]\nname = \"x\"\nwords = [\"911\"]", "calls.alerts"),
        ("[server\n", "my.toml"),
    ] {
        let error = load(file).unwrap_err();
        assert!(error.contains(key), "{file:?} gives {error:?}");
    }
    assert!(load("[server]\nlisten = \"0.0.0.0:80\"\nallow_anonymous = true").is_ok());
    assert!(load("[calls]\nrecord = true").is_ok());
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let layers = Layers {
        preset: Some("step-audio-r1"),
        file: Some(("f", "[server]\nmax_sessions = 2\n[thinking]\nlow = 7\n[model]\nthreads = 3\n")),
        environment: pairs(&[
            ("HEARKEN_SERVER_MAX_SESSIONS", "4"),
            ("HEARKEN_SERVER_API_TOKENS", "one, two"),
            ("HEARKEN_THINKING_MAX_REPLY_TOKENS", "5"),
            ("HEARKEN_AUDIO", "/not/ours"),
            ("PATH", "/bin"),
        ]),
        flags: pairs(&[("server.max_sessions", "8"), ("model.device", "cuda:1"), ("model.path", "/m")]),
    };
    let config = Config::load(&layers).unwrap();
    assert_eq!(config.server.max_sessions, 8);
    assert_eq!(config.server.api_tokens, [Secret::new("one"), Secret::new("two")]);
    assert_eq!((config.thinking.low, config.thinking.max_reply_tokens, config.model.threads), (7, 5, 3));
    assert_eq!((config.model.words, config.model.device.as_str()), (Words::None, "cuda:1"));
}

#[test]
fn an_unknown_variable_or_flag_is_refused_by_name_and_without_its_value() {
    for (environment, flags) in [
        (pairs(&[("HEARKEN_SERVER_TOKEN", "s3cret")]), vec![]),
        (vec![], pairs(&[("server.token", "s3cret")])),
        (vec![], pairs(&[("server.max_sessions", "s3cret")])),
    ] {
        let error = Config::load(&Layers { environment, flags, ..Layers::default() }).unwrap_err().to_string();
        assert!(error.contains("server.") && !error.contains("s3cret"), "{error}");
    }
}

#[test]
fn secrets_are_never_printed() {
    let mut config = Config::default();
    config.server.api_tokens = vec![Secret::new("s3cret")];
    let shown = format!("{}{config:?}", config.effective_toml());
    assert!(!shown.contains("s3cret") && shown.contains("***"), "{shown}");
}
