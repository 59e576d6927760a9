//! Many things at a time: a list of jobs, done by so many threads, each timed.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

/// What a crowd did.
#[derive(Debug)]
pub struct Done<T> {
    /// The results, in no order.
    pub results: Vec<T>,
    /// How long each job took, in ascending order.
    pub durations: Vec<Duration>,
    /// How long it took altogether.
    pub elapsed: Duration,
}

impl<T> Done<T> {
    /// Describes rate and latency in one line.
    pub fn describe(&self, what: &str) -> String {
        let milliseconds = |percent: usize| {
            let position = (self.durations.len() * percent / 100).min(self.durations.len().saturating_sub(1));
            self.durations.get(position).map_or(0.0, |duration| duration.as_secs_f64() * 1e3)
        };
        format!(
            "{what}: {} in {:.2} s, {:.0}/s, p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
            self.durations.len(),
            self.elapsed.as_secs_f64(),
            f64::from(self.durations.len() as u32) / self.elapsed.as_secs_f64(),
            milliseconds(50),
            milliseconds(99),
            milliseconds(100),
        )
    }
}

/// Does all jobs, `width` at a time.
pub fn run<J: Send, T: Send>(width: usize, jobs: Vec<J>, work: impl Fn(J) -> T + Sync) -> Done<T> {
    let start = Instant::now();
    let queue = Mutex::new(jobs.into_iter());
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..width {
            scope.spawn(|| {
                loop {
                    // The guard must be gone before the work starts.
                    let job = queue.lock().unwrap().next();
                    let Some(job) = job else { break };
                    let begun = Instant::now();
                    let result = work(job);
                    done.lock().unwrap().push((result, begun.elapsed()));
                }
            });
        }
    });
    let (results, mut durations): (Vec<_>, Vec<_>) = done.into_inner().unwrap().into_iter().unzip();
    durations.sort();
    Done { results, durations, elapsed: start.elapsed() }
}
