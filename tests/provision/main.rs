//! How long a pod takes: ADD and DEL through the plugin's binary, beside the reference plugins `bridge` and
//! `host-local`, interleaved in the same run. Asserts only that every call succeeds and that nothing is left; prints
//! the times.
//!
//! Both plugins run in one process's namespaces, without `nsenter` in between, so that the times are the plugins' own.

#![forbid(unsafe_code)]
#![expect(clippy::expect_used, reason = "a test that cannot go on panics: the backtrace names the place")]

mod load;
mod plugin;

use std::time::{Duration, Instant};

use plugin::{Fixture, Plugin, Pod};

/// Pods of the sequential run, per plugin.
const SEQUENTIAL: usize = 200;
/// Calls in flight at once, and pods of that run.
const PARALLEL: [(usize, usize); 2] = [(8, 96), (50, 100)];

/// Times of the calls of one plugin.
#[derive(Default)]
struct Times {
    add: Vec<Duration>,
    delete: Vec<Duration>,
}

fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    let position = (times.len() * percent).div_ceil(100).saturating_sub(1);
    times.get(position).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

fn timed(call: impl FnOnce()) -> Duration {
    let start = Instant::now();
    call();
    start.elapsed()
}

fn report(run: &str, plugin: &str, verb: &str, times: &mut [Duration], total: Duration) {
    let rate = f64::from(u32::try_from(times.len()).unwrap_or(u32::MAX)) / total.as_secs_f64();
    println!(
        "{run:<14} {plugin:<10} {verb:<4} p50 {:>8.2} ms  p99 {:>8.2} ms  {rate:>8.1} /s",
        percentile(times, 50),
        percentile(times, 99)
    );
}

fn sequential(plugins: &[&Plugin<'_>]) {
    let mut all: Vec<Times> = plugins.iter().map(|_| Times::default()).collect();
    for round in 0..SEQUENTIAL {
        for (plugin, times) in plugins.iter().zip(&mut all) {
            let pod = Pod::new(&format!("s{round}"));
            times.add.push(timed(|| plugin.add(&pod)));
            times.delete.push(timed(|| plugin.delete(&pod)));
        }
    }
    for (plugin, times) in plugins.iter().zip(&mut all) {
        for (verb, times) in [("ADD", &mut times.add), ("DEL", &mut times.delete)] {
            let total = times.iter().sum();
            report("sequential", plugin.name, verb, times, total);
        }
    }
}

/// Runs a call for every pod on several threads; returns the time of each and of all.
fn on_threads(threads: usize, pods: &[Pod], call: impl Fn(&Pod) + Sync) -> (Vec<Duration>, Duration) {
    let start = Instant::now();
    let times = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                let call = &call;
                scope.spawn(move || -> Vec<Duration> {
                    pods.iter().skip(worker).step_by(threads).map(|pod| timed(|| call(pod))).collect()
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker's calls succeed")).collect()
    });
    (times, start.elapsed())
}

fn parallel(plugins: &[&Plugin<'_>], threads: usize, count: usize) {
    let run = format!("{threads} at once");
    for plugin in plugins {
        let pods: Vec<Pod> = (0..count).map(|number| Pod::new(&format!("p{threads}-{number}"))).collect();
        let (mut add, add_total) = on_threads(threads, &pods, |pod| plugin.add(pod));
        let (mut delete, delete_total) = on_threads(threads, &pods, |pod| plugin.delete(pod));
        report(&run, plugin.name, "ADD", &mut add, add_total);
        report(&run, plugin.name, "DEL", &mut delete, delete_total);
    }
}

fn measure(fixture: &Fixture, plugins: &[&Plugin<'_>]) {
    sequential(plugins);
    for (threads, count) in PARALLEL {
        parallel(plugins, threads, count);
    }
    for plugin in plugins {
        plugin.assert_nothing_left(fixture);
    }
}

/// The fixture itself: what fails here is not podnet.
#[test]
fn the_reference_plugins_work_in_the_fixture() {
    let fixture = Fixture::new("ref");
    let reference = fixture.reference();
    let pod = Pod::new("smoke");
    reference.add(&pod);
    reference.delete(&pod);
    reference.assert_nothing_left(&fixture);
}

#[test]
fn pods_are_added_and_deleted_beside_the_reference() {
    let fixture = Fixture::new("both");
    let reference = fixture.reference();
    let daemon = fixture.start_daemon();
    let podnet = fixture.podnet(&daemon);
    measure(&fixture, &[&podnet, &reference]);
}
