//! What the server says to requests that need no sandbox: who may, what is refused, how much.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use clap::Parser;
use serde_json::{Value, json};
use tower::ServiceExt;
use utoipa::OpenApi;

use crate::api::Document;
use crate::app::App;
use crate::keys::Keys;
use crate::options::Options;
use crate::packs::Packs;
use crate::router::router;

const KEY: &str = "an-example-of-a-key";

fn options() -> Options {
    Options::parse_from(["ember-server", "--body-limit", "2"])
}

/// A server whose templates are still being built.
fn app(keys: &str) -> Arc<App> {
    let packs = Packs::unready(&[
        ("python", &["python3"]),
        ("javascript", &["node"]),
        ("bash", &["shell"]),
    ]);
    Arc::new(App::new(options(), Keys::of_lines(keys).unwrap(), packs))
}

async fn ask(router: &Router, request: Request<Body>) -> (Response<()>, Value) {
    let response = router.clone().oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
    (Response::from_parts(head, ()), value)
}

fn request(method: &str, path: &str, body: impl Into<Body>) -> Request<Body> {
    let builder = Request::builder().method(method).uri(path);
    builder.body(body.into()).unwrap()
}

async fn post(router: &Router, path: &str, body: impl Into<Body>) -> (Response<()>, Value) {
    ask(router, request("POST", path, body)).await
}

const GUARDED: [(&str, &str); 9] = [
    ("GET", "/info"),
    ("POST", "/sandboxes"),
    ("POST", "/sandboxes/x/exec"),
    ("DELETE", "/sandboxes/x"),
    ("POST", "/v1/exec"),
    ("POST", "/exec"),
    ("POST", "/v1/exec/batch"),
    ("GET", "/v1/metrics"),
    ("GET", "/metrics"),
];

#[tokio::test]
async fn without_the_key_nothing_is_done() {
    let router = router(app(KEY));
    for (method, path) in GUARDED {
        // Also a body that is far too large is not looked at.
        let (response, body) = ask(&router, request(method, path, vec![b' '; 100_000])).await;
        assert_eq!(response.status(), 401, "{method} {path}");
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        assert_eq!(body, json!({"error": "Missing Authorization header"}));
        let mut wrong = request(method, path, "");
        let value = format!("Bearer {KEY}x").parse().unwrap();
        wrong.headers_mut().insert("authorization", value);
        let (response, body) = ask(&router, wrong).await;
        assert_eq!(response.status(), 401, "{method} {path}");
        assert_eq!(body, json!({"error": "Invalid API key"}));
        let mut right = request(method, path, "");
        let value = format!("Bearer {KEY}").parse().unwrap();
        right.headers_mut().insert("authorization", value);
        let (response, _) = ask(&router, right).await;
        assert_ne!(response.status(), 401, "{method} {path}");
    }
    for path in ["/healthz", "/v1/health", "/health", "/openapi.json"] {
        let (response, _) = ask(&router, request("GET", path, "")).await;
        assert_eq!(response.status(), 200, "{path}");
    }
}

#[tokio::test]
async fn without_any_key_web_pages_are_refused() {
    let router = router(app(""));
    let mut page = request("POST", "/v1/exec", r#"{"code":"1"}"#);
    let origin = "https://example.org".parse().unwrap();
    page.headers_mut().insert("origin", origin);
    assert_eq!(ask(&router, page).await.0.status(), 403);
    let mut rebound = request("GET", "/metrics", "");
    let host = "example.org:8080".parse().unwrap();
    rebound.headers_mut().insert("host", host);
    assert_eq!(ask(&router, rebound).await.0.status(), 403);
}

#[tokio::test]
async fn what_is_no_request_is_refused_with_a_reason() {
    let router = router(app(""));
    for (path, body) in [
        ("/sandboxes", "{"),
        ("/sandboxes", r#"{"language_pack": 7}"#),
        ("/sandboxes", r#""python""#),
        ("/v1/exec", ""),
        ("/v1/exec", "{}"),
        ("/v1/exec", r#"{"code": "1", "timeout_seconds": -1}"#),
        ("/v1/exec", r#"{"code": "1", "timeout_seconds": "soon"}"#),
        ("/v1/exec", "\u{feff}{}"),
        ("/v1/exec/batch", "[]"),
        (
            "/v1/exec/batch",
            r#"{"executions": [{"language": "python"}]}"#,
        ),
        ("/sandboxes/sb_1/exec", "print(1)"),
    ] {
        let (response, answer) = post(&router, path, body).await;
        assert_eq!(response.status(), 400, "{path} {body}");
        let error = answer["error"].as_str().unwrap();
        assert!(error.starts_with("invalid request body"), "{error}");
    }
    // As deep as anybody likes.
    let (response, _) = post(&router, "/v1/exec", "[".repeat(2000)).await;
    assert_eq!(response.status(), 400);
    let body = json!({"code": "1", "timeout_seconds": 0}).to_string();
    assert_eq!(post(&router, "/v1/exec", body).await.0.status(), 400);
    let many = json!({"executions": vec![json!({"code": ""}); 257]}).to_string();
    // More than the two KiB of this server.
    assert_eq!(post(&router, "/v1/exec/batch", many).await.0.status(), 413);
}

#[tokio::test]
async fn a_batch_is_bounded() {
    let mut options = options();
    options.body_limit = ember_core::ByteSize::mib(1);
    let packs = Packs::unready(&[("python", &[])]);
    let app = App::new(options, Keys::default(), packs);
    let router = router(Arc::new(app));
    let many = |count| json!({"executions": vec![json!({"code": ""}); count]}).to_string();
    let (response, answer) = post(&router, "/v1/exec/batch", many(257)).await;
    assert_eq!(response.status(), 400);
    assert!(
        answer["error"].as_str().unwrap().contains("256"),
        "{answer}"
    );
    // Each has its own answer: here, that there is no sandbox yet.
    let (response, answer) = post(&router, "/v1/exec/batch", many(256)).await;
    assert_eq!(response.status(), 200);
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), 256);
    assert!(results.iter().all(|result| result["exit_code"] == -1));
    let (_, answer) = post(&router, "/v1/exec/batch", many(0)).await;
    assert_eq!(answer, json!({"results": []}));
}

#[tokio::test]
async fn an_unknown_language_is_refused_with_the_list() {
    let router = router(app(""));
    let expected = json!({
        "error": "unknown language pack: \"cobol\"; there are: python, javascript, bash"
    });
    for (path, body) in [
        ("/sandboxes", json!({"language_pack": "cobol"})),
        ("/v1/exec", json!({"code": "1", "language": "cobol"})),
        (
            "/v1/exec/batch",
            json!({"executions": [{"code": "1"}, {"code": "1", "language": "cobol"}]}),
        ),
    ] {
        let (response, answer) = post(&router, path, body.to_string()).await;
        assert_eq!(response.status(), 400, "{path}");
        assert_eq!(answer, expected);
    }
}

#[tokio::test]
async fn while_templates_are_built_clients_are_told_to_come_again() {
    let router = router(app(""));
    for (path, body, pack) in [
        ("/sandboxes", "", "python"),
        ("/sandboxes", "null", "python"),
        ("/sandboxes", "{}", "python"),
        ("/sandboxes", r#"{"language_pack": ""}"#, "python"),
        ("/sandboxes", r#"{"language_pack": "shell"}"#, "bash"),
        (
            "/sandboxes",
            r#"{"language_pack": "python3", "more": 1}"#,
            "python",
        ),
        ("/v1/exec", r#"{"code": "1"}"#, "python"),
        (
            "/exec",
            r#"{"code": "1", "language": "node"}"#,
            "javascript",
        ),
    ] {
        let (response, answer) = post(&router, path, body).await;
        assert_eq!(response.status(), 503, "{path} {body}");
        assert_eq!(response.headers()["retry-after"], "5");
        let error = answer["error"].as_str().unwrap();
        assert!(error.contains(pack), "{error}");
    }
    let (response, _) = ask(&router, request("GET", "/readyz", "")).await;
    assert_eq!(response.status(), 503);
    let (_, health) = ask(&router, request("GET", "/v1/health", "")).await;
    assert_eq!(health["status"], "starting");
    assert_eq!(health["templates"]["python"], json!({"ready": false}));
}

#[tokio::test]
async fn a_body_is_bounded_also_if_its_length_is_not_said() {
    let router = router(app(""));
    let limit = 2 * 1024;
    let code = |length: usize| json!({"code": "x".repeat(length)}).to_string();
    let fitting = code(limit - code(0).len());
    assert_eq!(fitting.len(), limit);
    assert_eq!(post(&router, "/v1/exec", fitting).await.0.status(), 503);
    assert_eq!(post(&router, "/v1/exec", code(limit)).await.0.status(), 413);
    // Said to be more, though nothing comes.
    let mut said = request("POST", "/v1/exec", "");
    said.headers_mut().insert("content-length", 3000.into());
    assert_eq!(ask(&router, said).await.0.status(), 413);
}

#[tokio::test]
async fn what_is_not_there_is_said_in_json() {
    let router = router(app(""));
    let (response, answer) = ask(&router, request("GET", "/nowhere", "")).await;
    assert_eq!(response.status(), 404);
    assert!(answer["error"].is_string());
    let (response, answer) = ask(&router, request("GET", "/v1/exec", "")).await;
    assert_eq!(response.status(), 405);
    assert!(answer["error"].is_string());
    assert_eq!(response.headers()["allow"], "POST");
    for (method, path) in [
        ("DELETE", "/sandboxes/sb_1"),
        ("POST", "/sandboxes/sb_1/exec"),
    ] {
        let (response, answer) = ask(&router, request(method, path, "{}")).await;
        assert_eq!(response.status(), 404);
        assert_eq!(answer, json!({"error": "sandbox not found"}));
    }
}

#[tokio::test]
async fn requests_are_counted_by_route_and_not_by_path() {
    let router = router(app(""));
    for path in ["/sandboxes/sb_1", "/sandboxes/sb_2"] {
        ask(&router, request("DELETE", path, "")).await;
    }
    ask(&router, request("BREW", "/coffee/1", "")).await;
    let (response, text) = ask(&router, request("GET", "/metrics", "")).await;
    assert_eq!(
        response.headers()["content-type"],
        "text/plain; version=0.0.4"
    );
    let text = text.as_str().unwrap();
    for line in [
        r#"ember_http_requests_total{route="DELETE /sandboxes/{id}",status="404"} 2"#,
        r#"ember_http_requests_total{route="other none",status="404"} 1"#,
        "ember_sandboxes_held 0",
        "# TYPE ember_http_requests_total counter",
    ] {
        assert!(
            text.lines().any(|it| it == line),
            "{line} is not in\n{text}"
        );
    }
}

#[tokio::test]
async fn the_document_describes_what_is_there() {
    let router = router(app(KEY));
    let (_, document) = ask(&router, request("GET", "/openapi.json", "")).await;
    assert_eq!(document, serde_json::to_value(Document::openapi()).unwrap());
    let mut guarded = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let method = method.to_uppercase();
            let (response, _) = ask(&router, request(&method, path, "{}")).await;
            assert_ne!(response.status(), StatusCode::NOT_FOUND, "{method} {path}");
            assert_ne!(response.status(), 405, "{method} {path}");
            assert!(operation["summary"].is_string(), "{method} {path}");
            // Those that want a key say so.
            let secured = operation.get("security").is_some();
            assert_eq!(response.status() == 401, secured, "{method} {path}");
            guarded.extend(secured.then_some((method, path.clone())));
        }
    }
    for (method, path) in GUARDED {
        // `/exec` is what older clients of zeroboot ask for.
        let path = path.replace("/x", "/{id}");
        let known = guarded
            .iter()
            .any(|known| *known == (method.to_owned(), path.clone()));
        assert!(known || path == "/exec", "{method} {path}");
    }
}

#[test]
fn the_command_line_is_understood_and_nonsense_is_not() {
    let ok = |arguments: &[&str]| {
        Options::try_parse_from(["ember-server"].iter().chain(arguments)).is_ok()
    };
    assert!(ok(&[
        "--listen",
        "[::1]:0",
        "--packs",
        "python,bash",
        "--max-age",
        "2h"
    ]));
    for wrong in [
        ["--listen", "8080"],
        ["--exec-timeout", "0s"],
        ["--exec-timeout", "10"],
        ["--max-age", "10000years"],
        ["--body-limit", "0"],
        ["--vcpus", "0"],
        ["--placement", "elsewhere"],
        ["--log", "loud"],
        ["--max-connections", "0"],
    ] {
        assert!(!ok(&wrong), "{wrong:?}");
    }
}
