//! Sandboxes that a client holds by an id, as clients of emberd ask for them.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::Shared;
use crate::body::{MaybeSent, Sent};
use crate::error::{ApiError, ErrorBody};
use crate::execution::{Done, End, Job};

/// What such a sandbox is of if its client does not say.
const USUAL: &str = "python";

/// What sandboxes are like here.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Info {
    /// The memory of each guest of the first pack that is ready, in MiB.
    guest_ram_mib: u64,
    guest_vcpus: u8,
    /// How sandboxes are made: always from a pool that is warm.
    boot_path: &'static str,
    packs: Vec<String>,
    /// Always empty: a sandbox has no files on the host.
    work_dir: &'static str,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct Create {
    /// A pack, or a language of one by any of its names: `python`, `shell`, `node`. `python` if not
    /// said.
    #[serde(default)]
    language_pack: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Created {
    #[schema(example = "sb_6f2a8c2f0f3b4c0e9a4d1f5f7f6d2b1c")]
    id: String,
}

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct Execute {
    #[serde(default)]
    #[schema(example = "print(6 * 7)")]
    code: Option<String>,
    /// What the program reads from its standard input.
    #[serde(default)]
    stdin: Option<String>,
    /// How long it may take. 0: as long as the server allows.
    #[serde(default)]
    #[schema(example = 5000)]
    timeout_ms: Option<i64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Executed {
    stdout: String,
    stderr: String,
    /// -1 if a signal or a limit ended it.
    exit_code: i32,
    /// How long it ran, by the guest's clock.
    duration_ms: u64,
    /// The same in microseconds.
    #[serde(skip_serializing_if = "is_zero")]
    duration_us: u64,
    /// The limit that ended it, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "the shape that serde wants"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[utoipa::path(get, path = "/info", tag = "emberd", security(("key" = [])),
    summary = "What sandboxes are like here",
    responses((status = 200, body = Info), (status = 401, body = ErrorBody)))]
pub(crate) async fn info(State(app): State<Shared>) -> Json<Info> {
    let ready = app.packs.iter().find_map(|pack| pack.ready());
    let memory = ready.map(|ready| ready.memory).or(app.options.memory);
    Json(Info {
        guest_ram_mib: memory.map_or(0, |memory| memory.as_bytes() >> 20),
        guest_vcpus: app.options.vcpus,
        boot_path: "warm-pool",
        packs: app.packs.iter().map(|pack| pack.name.clone()).collect(),
        work_dir: "",
    })
}

#[utoipa::path(post, path = "/sandboxes", tag = "emberd", security(("key" = [])),
    summary = "Take a sandbox",
    request_body = Option<Create>,
    responses(
        (status = 201, body = Created),
        (status = 400, body = ErrorBody, description = "The body is wrong, or there is no such language"),
        (status = 401, body = ErrorBody),
        (status = 503, body = ErrorBody, description = "None is free; `Retry-After` says when to ask again"),
    ))]
pub(crate) async fn create(
    State(app): State<Shared>,
    MaybeSent(request): MaybeSent<Option<Create>>,
) -> Result<(StatusCode, Json<Created>), ApiError> {
    let wanted = request.and_then(|request| request.language_pack);
    let wanted = wanted.as_deref().filter(|name| !name.is_empty());
    let (pack, language) = app.find(wanted.unwrap_or(USUAL))?;
    let (sandbox, _) = app.acquire(pack).await?;
    let id = app.sandboxes.hold(sandbox, &pack.name, language);
    tracing::debug!(id, pack = pack.name, "a sandbox is taken");
    Ok((StatusCode::CREATED, Json(Created { id })))
}

#[utoipa::path(post, path = "/sandboxes/{id}/exec", tag = "emberd", security(("key" = [])),
    summary = "Run a program in a sandbox",
    description = "Files stay from one program to the next; each has a process of its own.",
    params(("id" = String, Path)),
    request_body = Execute,
    responses(
        (status = 200, body = Executed, description = "It ran, however it ended"),
        (status = 400, body = ErrorBody),
        (status = 401, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "There is no such sandbox, or no more"),
        (status = 413, body = ErrorBody),
        (status = 500, body = ErrorBody, description = "The guest has died, and the sandbox is gone"),
    ))]
pub(crate) async fn execute(
    State(app): State<Shared>,
    Path(id): Path<String>,
    Sent(request): Sent<Execute>,
) -> Result<Json<Executed>, ApiError> {
    let held = app.sandboxes.find(&id)?;
    let timeout = match request.timeout_ms {
        Some(limit @ 1..) => Duration::from_millis(limit.unsigned_abs()),
        _ => app.options.exec_timeout,
    };
    let job = Job {
        language: held.language.clone(),
        code: request.code.unwrap_or_default(),
        stdin: request.stdin.unwrap_or_default(),
        timeout,
    };
    let work = app.execute(held.sandbox(), job);
    let result = held.during(app.options.queue_timeout, work).await;
    if !held.sandbox().is_alive() && app.sandboxes.take(&id).is_ok() {
        tracing::warn!(id, pack = held.pack, "a guest has died");
    }
    Ok(Json(result?.into()))
}

#[utoipa::path(delete, path = "/sandboxes/{id}", tag = "emberd", security(("key" = [])),
    summary = "End a sandbox, and what runs in it",
    params(("id" = String, Path)),
    responses(
        (status = 204),
        (status = 401, body = ErrorBody),
        (status = 404, body = ErrorBody),
    ))]
pub(crate) async fn delete(
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let held = app.sandboxes.take(&id)?;
    // Else something runs in it yet, and it ends with that, which has been told so.
    if let Some(held) = Arc::into_inner(held) {
        let (pack, sandbox) = held.into_parts();
        app.part_with(&pack, sandbox);
    }
    tracing::debug!(id, "a sandbox is given back");
    Ok(StatusCode::NO_CONTENT)
}

impl From<Done> for Executed {
    fn from(done: Done) -> Self {
        let (exit_code, error) = match done.end {
            End::Exited(code) => (code.into(), None),
            // As Go's os/exec has it, which emberd is written with.
            End::Signaled(_) => (-1, None),
            // emberd's words.
            End::TimedOut => (-1, Some("execution timed out".to_owned())),
            End::Exceeded(limit) => (-1, Some(limit)),
        };
        Self {
            stdout: done.stdout,
            stderr: done.stderr,
            exit_code,
            duration_ms: u64::try_from(done.duration.as_millis()).unwrap_or(u64::MAX),
            duration_us: u64::try_from(done.duration.as_micros()).unwrap_or(u64::MAX),
            error,
        }
    }
}
