//! A sandbox for each program, as clients of zeroboot ask for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use utoipa::ToSchema;
use uuid::Uuid;

use super::operators;
use crate::app::Shared;
use crate::body::Sent;
use crate::error::{ApiError, ErrorBody};
use crate::execution::{Done, End, Job};
use crate::packs::Pack;

/// How many programs may come at once.
const LARGEST_BATCH: usize = 256;
/// How many bytes of output they may have together: an answer is in memory, and JSON can make six of one.
const LARGEST_ANSWER: usize = 8 << 20;
/// How many of them run at once, so that one request does not take all sandboxes.
const AT_ONCE: usize = 16;
/// The longest that a program may ask for, as zeroboot has it; what is longer is taken for this.
const LONGEST: u64 = 300;

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct Execute {
    #[schema(example = "print(1 + 1)")]
    code: String,
    /// A language by any of its names: `python`, `node`, `javascript`.
    #[serde(default = "python")]
    #[schema(default = "python")]
    language: String,
    /// At most 300, and what the server allows.
    #[serde(default = "half_a_minute")]
    #[schema(default = 30, minimum = 1)]
    timeout_seconds: u64,
}

fn python() -> String {
    "python".to_owned()
}

fn half_a_minute() -> u64 {
    30
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Executed {
    #[schema(example = "019cf684-1fd5-73c0-9299-52253f9aa79c")]
    id: String,
    stdout: String,
    stderr: String,
    /// The program's own; 128 + N if the signal N ended it, -1 if a limit did.
    exit_code: i32,
    /// From the request until there was a sandbox, which the pool had made before.
    fork_time_ms: f64,
    exec_time_ms: f64,
    total_time_ms: f64,
}

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct Batch {
    #[schema(max_items = 256)]
    executions: Vec<Execute>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BatchResult {
    /// In the order of the executions.
    results: Vec<Executed>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// `ok`, or `starting` until all templates are built.
    status: &'static str,
    templates: BTreeMap<String, TemplateHealth>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TemplateHealth {
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_mb: Option<u64>,
}

#[utoipa::path(post, path = "/v1/exec", tag = "zeroboot", security(("key" = [])),
    summary = "Run a program in a sandbox of its own",
    request_body = Execute,
    responses(
        (status = 200, body = Executed, description = "It ran, however it ended"),
        (status = 400, body = ErrorBody, description = "The body is wrong, or there is no such language"),
        (status = 401, body = ErrorBody),
        (status = 413, body = ErrorBody),
        (status = 503, body = ErrorBody, description = "No sandbox is free; `Retry-After` says when to ask again"),
    ))]
pub(crate) async fn execute(
    State(app): State<Shared>,
    Sent(request): Sent<Execute>,
) -> Result<Json<Executed>, ApiError> {
    let task = Task::new(&app, request)?;
    Ok(Json(task.run(&app).await?))
}

#[utoipa::path(post, path = "/v1/exec/batch", tag = "zeroboot", security(("key" = [])),
    summary = "Run programs, each in a sandbox of its own",
    description = "One that got no sandbox has the exit code -1, and its standard error says why.",
    request_body = Batch,
    responses(
        (status = 200, body = BatchResult),
        (status = 400, body = ErrorBody),
        (status = 401, body = ErrorBody),
        (status = 413, body = ErrorBody),
    ))]
pub(crate) async fn execute_batch(
    State(app): State<Shared>,
    Sent(request): Sent<Batch>,
) -> Result<Json<BatchResult>, ApiError> {
    let count = request.executions.len();
    if count > LARGEST_BATCH {
        let message = format!("a batch has at most {LARGEST_BATCH} executions, and this {count}");
        return Err(ApiError::bad_request(message));
    }
    let tasks = request.executions.into_iter();
    let tasks: Vec<Task> = tasks
        .map(|request| Task::new(&app, request))
        .collect::<Result<_, _>>()?;
    let places = Arc::new(Semaphore::new(AT_ONCE));
    // Dropped with this future, it ends them all.
    let mut running = JoinSet::new();
    for (number, task) in tasks.into_iter().enumerate() {
        let (app, places) = (Arc::clone(&app), Arc::clone(&places));
        running.spawn(async move {
            // It is closed nowhere.
            let _place = places.acquire().await;
            let begun = Instant::now();
            let result = task.run(&app).await;
            (
                number,
                result.unwrap_or_else(|error| failed(&error.message, begun)),
            )
        });
    }
    let mut results: Vec<Option<Executed>> = Vec::new();
    results.resize_with(count, || None);
    let mut room = LARGEST_ANSWER;
    while let Some(done) = running.join_next().await {
        match done {
            Ok((number, result)) => {
                let size = result.stdout.len() + result.stderr.len();
                let has_room = size <= room;
                room = room.saturating_sub(size);
                results[number] = Some(if has_room {
                    result
                } else {
                    failed(
                        "the batch has more output than an answer may have",
                        Instant::now(),
                    )
                });
            }
            Err(error) => tracing::error!(%error, "an execution ended unexpectedly"),
        }
    }
    let now = Instant::now();
    let results = results.into_iter();
    let results = results
        .map(|result| result.unwrap_or_else(|| failed("a mistake of the server's", now)))
        .collect();
    Ok(Json(BatchResult { results }))
}

#[utoipa::path(get, path = "/v1/health", tag = "zeroboot",
    summary = "Which templates are ready",
    responses((status = 200, body = Health)))]
pub(crate) async fn health(State(app): State<Shared>) -> Json<Health> {
    let templates = app.packs.iter().map(|pack| {
        let ready = pack.ready();
        let health = TemplateHealth {
            ready: ready.is_some(),
            memory_mb: ready.map(|ready| ready.memory.as_bytes() >> 20),
        };
        (pack.name.clone(), health)
    });
    Json(Health {
        templates: templates.collect(),
        status: if app.packs.are_ready() {
            "ok"
        } else {
            "starting"
        },
    })
}

#[utoipa::path(get, path = "/v1/metrics", tag = "zeroboot", security(("key" = [])),
    summary = "The same as /metrics",
    responses((status = 200, body = String), (status = 401, body = ErrorBody)))]
pub(crate) async fn metrics(app: State<Shared>) -> impl IntoResponse {
    operators::metrics(app).await
}

/// An execution that can be.
struct Task {
    pack: Arc<Pack>,
    job: Job,
}

impl Task {
    fn new(app: &Shared, request: Execute) -> Result<Self, ApiError> {
        let (pack, language) = app.find(&request.language)?;
        if request.timeout_seconds == 0 {
            return Err(ApiError::bad_request("timeout_seconds must be at least 1"));
        }
        Ok(Self {
            pack: Arc::clone(pack),
            job: Job {
                language,
                code: request.code,
                stdin: String::new(),
                timeout: Duration::from_secs(request.timeout_seconds.min(LONGEST)),
            },
        })
    }

    async fn run(self, app: &Shared) -> Result<Executed, ApiError> {
        let Self { pack, job } = self;
        let begun = Instant::now();
        let limit = job.timeout.min(app.options.exec_timeout);
        let (sandbox, forking) = app.acquire(&pack).await?;
        let executing = Instant::now();
        let done = app.execute(&sandbox, job).await;
        let executing = executing.elapsed();
        if !sandbox.is_alive() {
            // What it was doing is why; it is this program's own end.
            let reason = done.err().map_or(String::new(), |error| error.message);
            return Ok(failed(&reason, begun));
        }
        app.part_with(&pack.name, sandbox);
        let Done {
            stdout,
            mut stderr,
            end,
            ..
        } = done?;
        let total = begun.elapsed();
        app.metrics.answered(&pack.name, total);
        let exit_code = match &end {
            End::Exited(code) => (*code).into(),
            End::Signaled(signal) => 128 + i32::from(*signal),
            End::TimedOut => {
                // zeroboot's words.
                stderr += &format!("Execution timed out after {}s", limit.as_secs_f64());
                -1
            }
            End::Exceeded(what) => {
                stderr += what;
                -1
            }
        };
        Ok(Executed {
            id: Uuid::now_v7().to_string(),
            stdout,
            stderr,
            exit_code,
            fork_time_ms: milliseconds(forking),
            exec_time_ms: milliseconds(executing),
            total_time_ms: milliseconds(total),
        })
    }
}

/// An execution that has no result, in the way that zeroboot says it.
fn failed(reason: &str, begun: Instant) -> Executed {
    Executed {
        id: Uuid::now_v7().to_string(),
        stdout: String::new(),
        stderr: reason.to_owned(),
        exit_code: -1,
        fork_time_ms: 0.0,
        exec_time_ms: 0.0,
        total_time_ms: milliseconds(begun.elapsed()),
    }
}

/// With three digits behind the point.
fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
