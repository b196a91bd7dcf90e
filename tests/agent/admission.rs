//! Who comes in, and what the rest of the server says.

use hearken::config::Secret;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Error;

use crate::harness::{Client, config, serve, soon};

fn status(result: Result<Client, Error>) -> u16 {
    match result {
        Ok(_) => 101,
        Err(Error::Http(response)) => response.status().as_u16(),
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_session_too_many_is_refused_in_plain_http_and_a_freed_place_is_given() {
    let mut config = config();
    config.server.max_sessions = 1;
    let mut server = serve(config).await;
    let first = server.connect().await;
    let Err(Error::Http(refused)) = server.connect_with(&[]).await else { panic!("there was no place") };
    assert_eq!(refused.status().as_u16(), 503);
    let body: Value = serde_json::from_slice(refused.body().as_ref().unwrap()).unwrap();
    assert_eq!((&body["error"]["code"], &body["error"]["type"]), (&json!("overloaded"), &json!("server_error")));
    drop(first);
    soon("the session's end", server.closed.recv()).await;
    // The place is free when the connection is quite closed, a moment after its session.
    let mut client = loop {
        match server.connect_with(&[]).await {
            Ok(client) => break client,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    client.expect("session.created").await;
    let (_, _, metrics) = server.get("/metrics", "").await;
    assert!(metrics.contains("hearken_sessions_total 2\n"), "{metrics}");
    assert!(metrics.contains("hearken_sessions_active 1\n"), "{metrics}");
    assert!(!metrics.contains("hearken_refused_busy_total 0\n"), "{metrics}");
}

#[tokio::test]
async fn a_token_is_asked_for_where_one_is_set() {
    let mut config = config();
    config.server.api_tokens = vec![Secret::new("sesame"), Secret::new("ek_other")];
    let server = serve(config).await;
    assert_eq!(status(server.connect_with(&[]).await), 401);
    assert_eq!(status(server.connect_with(&[("authorization", "Bearer nonsense")]).await), 401);
    assert_eq!(status(server.connect_with(&[("authorization", "Bearer sesame")]).await), 101);
    let browser = "realtime, openai-insecure-api-key.ek_other";
    let client = server.connect_with(&[("sec-websocket-protocol", browser)]).await.unwrap();
    assert_eq!(client.protocol.as_deref(), Some("realtime"), "the key itself is not echoed");
    let (code, head, body) = server.get("/v1/models", "").await;
    assert_eq!(code, 401);
    assert!(head.contains("www-authenticate: bearer") && body.contains("invalid_api_key"));
    assert_eq!(server.get("/v1/models", "Authorization: Bearer sesame\r\n").await.0, 200);
    // The page and the probes show nothing that needs one.
    for path in ["/", "/health", "/ready", "/metrics"] {
        assert_eq!(server.get(path, "").await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn pages_of_other_sites_and_rebound_names_stay_out() {
    let mut config = config();
    config.server.allowed_origins = vec!["https://ours.example".into()];
    let server = serve(config).await;
    assert_eq!(status(server.connect_with(&[("origin", "https://evil.example")]).await), 403);
    assert_eq!(status(server.connect_with(&[("origin", "https://ours.example")]).await), 101);
    let own = format!("http://{}", server.address);
    assert_eq!(status(server.connect_with(&[("origin", &own)]).await), 101);
    assert_eq!(server.get("/v1/models", "Host: evil.example\r\n").await.0, 421);
}

#[tokio::test]
async fn a_listed_site_may_read_what_it_asks_for_and_others_may_not() {
    let mut config = config();
    config.server.allowed_origins = vec!["https://ours.example".into()];
    config.server.api_tokens = vec![Secret::new("sesame")];
    let server = serve(config).await;
    let ours = "Origin: https://ours.example\r\n";
    // What a browser asks beforehand has no token.
    let asks =
        "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization, x-stainless-lang\r\n";
    let (code, head, _) = server.request("OPTIONS", "/v1/chat/completions", &format!("{ours}{asks}"), "").await;
    assert_eq!(code, 204);
    assert!(head.contains("access-control-allow-origin: https://ours.example"), "{head}");
    assert!(head.contains("access-control-allow-headers: authorization, x-stainless-lang"), "{head}");
    let (code, head, _) = server.get("/v1/models", &format!("{ours}Authorization: Bearer sesame\r\n")).await;
    assert!(code == 200 && head.contains("access-control-allow-origin: https://ours.example"), "{head}");
    let (code, head, _) = server.get("/v1/models", ours).await;
    assert!(code == 401 && head.contains("access-control-allow-origin"), "a page can read why: {head}");
    let evil = format!("Origin: https://evil.example\r\n{asks}");
    let (code, head, _) = server.request("OPTIONS", "/v1/chat/completions", &evil, "").await;
    assert!(code == 403 && !head.contains("access-control"), "{head}");
}

#[tokio::test]
async fn the_page_the_probes_and_the_models_are_served() {
    let server = serve(config()).await;
    let (code, head, body) = server.get("/", "").await;
    assert_eq!(code, 200);
    assert!(
        head.contains("content-type: text/html") && head.contains("content-security-policy:") && head.contains("etag:")
    );
    assert!(body.to_lowercase().contains("hearken"));
    let (_, _, models) = server.get("/v1/models", "").await;
    assert_eq!(serde_json::from_str::<Value>(&models).unwrap()["data"][0]["id"], "test-model");
    let (code, _, body) = server.get("/nothing", "").await;
    assert_eq!((code, body.contains("not_found")), (404, true));
    let (code, _, body) = server.get("/v1/realtime", "").await;
    assert!((400..500).contains(&code) && body.contains("websocket_expected"), "{code} {body}");
}
