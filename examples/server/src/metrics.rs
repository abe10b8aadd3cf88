//! What is counted and measured, for Prometheus.

use std::fmt;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use ember_core::{PoolStatus, PooledSandbox};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use tokio::sync::Semaphore;

use crate::app::App;

/// The unit in which copied memory is counted.
const PAGE_BYTES: u64 = 4096;
/// From a clone that lay ready to a program that waits.
const SECONDS: &[f64] = &[
    0.000_01, 0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 60.0, 300.0,
];
/// 64 KiB to 1 GiB.
const PAGES: &[f64] = &[
    16.0, 64.0, 256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0,
];

/// What is counted and measured. It belongs to one server, not to the process.
pub(crate) struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    /// To look through a sandbox's memory takes a processor for about a millisecond: one at a time,
    /// and those that end meanwhile are not looked at.
    looking: Arc<Semaphore>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let buckets = |builder: PrometheusBuilder, name: &str, values| {
            // Fails for no buckets only.
            builder
                .set_buckets_for_metric(Matcher::Suffix(name.to_owned()), values)
                .unwrap_or_default()
        };
        let builder = buckets(PrometheusBuilder::new(), "_seconds", SECONDS);
        let recorder = buckets(builder, "_pages", PAGES).build_recorder();
        let handle = recorder.handle();
        let metrics = Self {
            recorder,
            handle,
            looking: Arc::new(Semaphore::new(1)),
        };
        metrics.record(describe);
        metrics
    }

    fn record(&self, record: impl FnOnce()) {
        metrics::with_local_recorder(&self.recorder, record);
    }

    /// Brings what was measured into the histograms; else it is kept until somebody asks.
    pub(crate) fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// A clone was made.
    pub(crate) fn forked(&self, pack: &str, object: Duration, reply: Duration) {
        self.record(|| {
            counter!("ember_forks_total", "pack" => pack.to_owned(), "outcome" => "ok")
                .increment(1);
        });
        self.latency(pack, "object", object);
        self.latency(pack, "reply", reply);
    }

    pub(crate) fn fork_failed(&self, pack: &str) {
        self.record(|| {
            counter!("ember_forks_total", "pack" => pack.to_owned(), "outcome" => "failed")
                .increment(1);
        });
    }

    /// A sandbox was handed out.
    pub(crate) fn acquired(&self, pack: &str, took: Duration) {
        self.latency(pack, "acquire", took);
    }

    /// User code has answered in a sandbox that was asked for this long ago.
    pub(crate) fn answered(&self, pack: &str, took: Duration) {
        self.latency(pack, "result", took);
    }

    fn latency(&self, pack: &str, kind: &'static str, took: Duration) {
        self.record(|| {
            histogram!("ember_latency_seconds", "pack" => pack.to_owned(), "kind" => kind)
                .record(took);
        });
    }

    /// A program came to its end.
    pub(crate) fn executed(&self, language: &str, verdict: &'static str, took: Duration) {
        self.record(|| {
            let language = language.to_owned();
            counter!(
                "ember_executions_total",
                "language" => language.clone(), "outcome" => verdict
            )
            .increment(1);
            histogram!("ember_execution_seconds", "language" => language).record(took);
        });
    }

    /// A client's sandbox was ended without its asking.
    pub(crate) fn evicted(&self, pack: &str) {
        self.record(|| {
            counter!("ember_sandboxes_evicted_total", "pack" => pack.to_owned()).increment(1);
        });
    }

    /// A request was answered.
    pub(crate) fn requested(&self, route: String, status: u16) {
        self.record(|| {
            let status = status.to_string();
            counter!(
                "ember_http_requests_total",
                "route" => route, "status" => status
            )
            .increment(1);
        });
    }

    /// Looks how much memory a sandbox has made its own, then ends it.
    pub(crate) fn look_at(self: &Arc<Self>, pack: &str, sandbox: PooledSandbox) {
        let Ok(place) = Arc::clone(&self.looking).try_acquire_owned() else {
            return;
        };
        let (metrics, pack) = (Arc::clone(self), pack.to_owned());
        tokio::spawn(async move {
            // One that has died has none.
            if let Ok(bytes) = sandbox.copied_bytes().await {
                let pages = (bytes / PAGE_BYTES) as f64;
                metrics.record(|| {
                    histogram!("ember_sandbox_copied_pages", "pack" => pack).record(pages);
                });
            }
            drop((sandbox, place));
        });
    }

    /// All of it, in Prometheus' text format.
    pub(crate) fn render(&self, app: &App) -> String {
        self.record(|| {
            for pack in app.packs.iter() {
                if let Some(ready) = pack.ready() {
                    depth(&pack.name, &ready.pool.status());
                    let shared = ready.shared_bytes as f64;
                    gauge!("ember_template_shared_bytes", "pack" => pack.name.clone()).set(shared);
                }
            }
            gauge!("ember_sandboxes_held").set(app.sandboxes.count() as f64);
            if let Some(bytes) = resident_bytes() {
                gauge!("ember_process_resident_bytes").set(bytes as f64);
            }
        });
        self.handle.render()
    }
}

fn depth(pack: &str, status: &PoolStatus) {
    let state = |state: &'static str, count: usize| {
        gauge!("ember_pool_sandboxes", "pack" => pack.to_owned(), "state" => state)
            .set(count as f64);
    };
    state("ready", status.ready);
    state("busy", status.busy);
    state("making", status.making);
    state("ending", status.ending);
    gauge!("ember_pool_waiting", "pack" => pack.to_owned()).set(status.waiting as f64);
    let turned_away = status.refused.saturating_add(status.expired);
    counter!("ember_pool_turned_away_total", "pack" => pack.to_owned()).absolute(turned_away);
    counter!("ember_pool_ended_total", "pack" => pack.to_owned()).absolute(status.ended);
}

fn describe() {
    describe_counter!(
        "ember_forks_total",
        "Attempts to make a sandbox, by outcome."
    );
    describe_histogram!(
        "ember_latency_seconds",
        "Of a clone: object (a VM is ready to run) and reply (it has confirmed its identity), made \
         ahead; acquire (a sandbox is handed out) and result (user code has answered), from the \
         request."
    );
    describe_counter!(
        "ember_executions_total",
        "Programs that were run, by outcome."
    );
    describe_histogram!(
        "ember_execution_seconds",
        "How long programs ran, by their guest's clock."
    );
    describe_counter!(
        "ember_sandboxes_evicted_total",
        "Sandboxes of clients that were idle, too old or dead."
    );
    describe_counter!(
        "ember_http_requests_total",
        "Requests, by route and status."
    );
    describe_histogram!(
        "ember_sandbox_copied_pages",
        "How many pages of 4 KiB a sandbox had copied when it was done with; a sample of them."
    );
    describe_gauge!("ember_pool_sandboxes", "Sandboxes of a pool, by state.");
    describe_gauge!("ember_pool_waiting", "Requests that wait for a sandbox.");
    describe_counter!(
        "ember_pool_turned_away_total",
        "Requests that got no sandbox in time."
    );
    describe_counter!("ember_pool_ended_total", "Sandboxes that have ended.");
    describe_gauge!(
        "ember_template_shared_bytes",
        "Memory that all sandboxes of a pack share."
    );
    describe_gauge!(
        "ember_sandboxes_held",
        "Sandboxes that clients hold by an id."
    );
    describe_gauge!(
        "ember_process_resident_bytes",
        "Memory of the server's own process."
    );
}

/// Of this process (proc(5), statm: the second number is the resident pages).
fn resident_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    pages.checked_mul(u64::try_from(rustix::param::page_size()).ok()?)
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
