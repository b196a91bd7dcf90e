//! The routes as such: what is described is served, and nothing else is.

use serde_json::Value;

use crate::harness::{config, serve};

#[tokio::test]
async fn the_openapi_document_names_each_routes_methods_and_no_other() {
    let server = serve(config()).await;
    let document: Value = serde_json::from_str(&server.get("/openapi.json", "").await.2).unwrap();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = path.replace(['{', '}'], "");
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let described = methods.get(method.to_lowercase()).is_some();
            let answer = server.send(method, &path, "application/json", b"").await.answer().await;
            assert_eq!(answer.status != 405, described, "{method} {path}: {}", answer.status);
            if !described {
                assert_eq!(answer.refusal().0, "method_not_allowed");
            }
        }
    }
}

#[tokio::test]
async fn the_model_is_listed_and_found_by_name() {
    let server = serve(config()).await;
    let list: Value = serde_json::from_str(&server.get("/v1/models", "").await.2).unwrap();
    let one: Value = serde_json::from_str(&server.get("/v1/models/test-model", "").await.2).unwrap();
    assert_eq!((&list["object"], &list["data"][0]), (&Value::from("list"), &one));
    assert_eq!(one["object"], "model");
    let (status, _, body) = server.get("/v1/models/other", "").await;
    assert!(status == 404 && body.contains("model_not_found"), "{status} {body}");
}
