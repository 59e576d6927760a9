//! The static store on real files: each way in which a file changes, and each way in which it is broken.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    pin::pin,
};

use tempfile::TempDir;

use super::*;

/// The slow poll must not be what makes a test pass.
const SOON: Duration = Duration::from_secs(3);

/// A store that has told its first news, and a folder for its file.
struct Fixture {
    dir: TempDir,
    store: StaticStore,
}

impl Fixture {
    fn new(file: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = StaticStore::new(&dir.path().join(file)).unwrap();
        Self { dir, store }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn write(&self, file: &str, nodes: usize) {
        fs::write(self.path(file), text(nodes)).unwrap();
    }

    async fn next(&mut self) -> Update {
        tokio::time::timeout(SOON, self.store.next()).await.expect("no news of the store")
    }

    /// Expects a snapshot of so many nodes.
    async fn nodes(&mut self, nodes: usize) {
        match self.next().await {
            Update::Snapshot(cluster) => assert_eq!(cluster.nodes().len(), nodes),
            Update::Failed(message) | Update::Disowned(message) => panic!("{message}"),
        }
    }

    async fn failure(&mut self) -> String {
        match self.next().await {
            Update::Snapshot(cluster) => panic!("{cluster:?}"),
            Update::Failed(message) | Update::Disowned(message) => message,
        }
    }

    /// Expects no news for longer than any change takes.
    async fn silence(&mut self) {
        let news = tokio::time::timeout(SETTLE_LIMIT + SETTLE_WRITING, self.store.next()).await;
        assert!(news.is_err(), "{news:?}");
    }
}

fn text(nodes: usize) -> String {
    let nodes: Vec<_> = (0..nodes)
        .map(|number| {
            let (high, low) = (number / 250, number % 250 + 1);
            format!(
                r#"{{"name":"node{number}","addresses":["192.168.{high}.{low}","fd00:192:168:{high:x}::{low:x}"],"podCIDRs":["10.{}.{}.0/24","fd00:10:244:{number:x}::/64"]}}"#,
                number >> 8,
                number & 255,
            )
        })
        .collect();
    format!("{{\"nodes\":[{}]}}", nodes.join(","))
}

#[tokio::test]
async fn a_file_written_in_place_is_read_again_soon() {
    let mut fixture = Fixture::new("nodes.json");
    fixture.write("nodes.json", 1);
    fixture.nodes(1).await;
    let mut fastest = SOON;
    for nodes in 2..6 {
        fixture.write("nodes.json", nodes);
        let start = Instant::now();
        fixture.nodes(nodes).await;
        fastest = fastest.min(start.elapsed());
    }
    assert!(fastest < Duration::from_millis(50), "{fastest:?}");
}

#[tokio::test]
async fn a_file_written_piece_by_piece_is_read_once() {
    let mut fixture = Fixture::new("nodes.json");
    fixture.write("nodes.json", 1);
    fixture.nodes(1).await;
    let path = fixture.path("nodes.json");
    let writer = std::thread::spawn(move || {
        let mut file = fs::File::create(path).unwrap();
        for piece in text(3).as_bytes().chunks(40) {
            file.write_all(piece).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    fixture.nodes(3).await;
    writer.join().unwrap();
    fixture.silence().await;
}

#[tokio::test]
async fn a_file_that_is_replaced_or_removed_and_made_again_is_read_again() {
    let mut fixture = Fixture::new("nodes.json");
    fixture.write("nodes.json", 1);
    fixture.nodes(1).await;
    for nodes in 2..5 {
        fixture.write(".nodes.json.new", nodes);
        fs::rename(fixture.path(".nodes.json.new"), fixture.path("nodes.json")).unwrap();
        fixture.nodes(nodes).await;
    }
    for nodes in [4, 5] {
        fs::remove_file(fixture.path("nodes.json")).unwrap();
        let message = fixture.failure().await;
        assert!(message.contains("nodes.json") && message.contains("No such file"), "{message}");
        fixture.write("nodes.json", nodes);
        fixture.nodes(nodes).await;
    }
    // A neighbour is of no interest.
    fixture.write("others.json", 7);
    fixture.silence().await;
}

#[tokio::test]
async fn a_config_map_is_read_again() {
    let mut fixture = Fixture::new("nodes.json");
    let publish = |fixture: &Fixture, version: usize| {
        // As the kubelet's atomic writer does.
        let folder = format!("..2026_01_0{version}");
        fs::create_dir(fixture.path(&folder)).unwrap();
        fixture.write(&format!("{folder}/nodes.json"), version);
        symlink(&folder, fixture.path("..data_tmp")).unwrap();
        fs::rename(fixture.path("..data_tmp"), fixture.path("..data")).unwrap();
        if version > 1 {
            fs::remove_dir_all(fixture.path(&format!("..2026_01_0{}", version - 1))).unwrap();
        }
    };
    publish(&fixture, 1);
    symlink("..data/nodes.json", fixture.path("nodes.json")).unwrap();
    fixture.nodes(1).await;
    for version in 2..5 {
        publish(&fixture, version);
        fixture.nodes(version).await;
    }
    // The target of the link is watched, too.
    fixture.write("..2026_01_04/nodes.json", 9);
    fixture.nodes(9).await;
}

#[tokio::test]
async fn folders_may_come_go_and_move() {
    let mut fixture = Fixture::new("a/b/nodes.json");
    assert!(fixture.failure().await.contains("No such file"));
    fixture.silence().await;
    fs::create_dir_all(fixture.path("a/b")).unwrap();
    fixture.write("a/b/nodes.json", 1);
    fixture.nodes(1).await;
    fs::rename(fixture.path("a"), fixture.path("c")).unwrap();
    assert!(fixture.failure().await.contains("No such file"));
    fixture.write("c/b/nodes.json", 2);
    fixture.silence().await;
    fs::rename(fixture.path("c"), fixture.path("a")).unwrap();
    fixture.nodes(2).await;
    fs::remove_dir_all(fixture.path("a")).unwrap();
    assert!(fixture.failure().await.contains("No such file"));
    fs::create_dir_all(fixture.path("a/b")).unwrap();
    fixture.write("a/b/nodes.json", 3);
    fixture.nodes(3).await;
}

#[tokio::test]
async fn a_broken_file_is_told_once_with_the_place() {
    let mut fixture = Fixture::new("nodes.json");
    fixture.write("nodes.json", 2);
    fixture.nodes(2).await;
    for (content, words) in [
        ("{\n  \"nodes\": [,]\n}", "line 2 column 13"),
        ("{\"nodes\":[]", "line 1 column 11"),
        ("{\"nodes\":[],\"version\":1}", "unknown field `version`"),
        (r#"{"nodes":[{"name":"a","addresses":["10.0.0.1"],"podCIDRs":[],"cpus":2}]}"#, "unknown field `cpus`"),
        (r#"{"nodes":[{"name":"a","addresses":["10.0.0.300"],"podCIDRs":[]}]}"#, "line 1 column"),
        (r#"{"nodes":[{"name":"a","addresses":["10.0.0.1"],"podCIDRs":["10.1.0.0/33"]}]}"#, "line 1 column"),
        (
            r#"{"nodes":[{"name":"a","addresses":["10.0.0.1"],"podCIDRs":["10.1.0.7/24"]}]}"#,
            "node a: 10.1.0.7/24 has host bits",
        ),
    ] {
        fs::write(fixture.path("nodes.json"), content).unwrap();
        let message = fixture.failure().await;
        assert!(message.contains("nodes.json") && message.contains(words), "{content}: {message}");
    }
    // The same failure in another content, and the same content once more.
    let name =
        |number: usize| format!(r#"{{"nodes":[{{"name":"","addresses":[],"podCIDRs":[]}}]}}{}"#, " ".repeat(number));
    fs::write(fixture.path("nodes.json"), name(0)).unwrap();
    assert!(fixture.failure().await.contains("empty name"));
    for number in [0, 1] {
        fs::write(fixture.path("nodes.json"), name(number)).unwrap();
        fixture.silence().await;
    }
    // What was good before is told again, since it is in force again.
    fixture.write("nodes.json", 2);
    fixture.nodes(2).await;
    fixture.write("nodes.json", 2);
    fixture.silence().await;
}

#[tokio::test]
async fn what_is_no_readable_file_is_a_failure() {
    let mut fixture = Fixture::new("nodes.json");
    nix::unistd::mkfifo(&fixture.path("nodes.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(fixture.failure().await.contains("no regular file"));
    fs::remove_file(fixture.path("nodes.json")).unwrap();
    assert!(fixture.failure().await.contains("No such file"));
    fixture.write(".new", 1);
    fs::set_permissions(fixture.path(".new"), fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(fixture.path(".new")).is_err() {
        fs::rename(fixture.path(".new"), fixture.path("nodes.json")).unwrap();
        assert!(fixture.failure().await.contains("Permission denied"));
        fs::set_permissions(fixture.path("nodes.json"), fs::Permissions::from_mode(0o600)).unwrap();
        fixture.nodes(1).await;
    }
    assert!(StaticStore::new(Path::new("nodes.json")).is_err());
}

#[tokio::test]
async fn nothing_is_lost_when_waiting_is_cancelled() {
    let mut fixture = Fixture::new("nodes.json");
    fixture.write("nodes.json", 1);
    fixture.nodes(1).await;
    for nodes in 2..5 {
        fixture.write("nodes.json", nodes);
        let deadline = Instant::now() + SOON;
        loop {
            // Cancelled after each step, also between a change and the reading.
            let next = tokio::time::timeout(Duration::from_millis(1), pin!(fixture.store.next())).await;
            if let Ok(update) = next {
                assert!(matches!(update, Update::Snapshot(cluster) if cluster.nodes().len() == nodes));
                break;
            }
            assert!(Instant::now() < deadline, "the change was lost");
        }
    }
}

#[tokio::test]
async fn without_a_watch_the_poll_finds_changes() {
    let mut fixture = Fixture::new("nodes.json");
    fixture.write("nodes.json", 1);
    fixture.nodes(1).await;
    fixture.store.watch = None;
    fixture.store.poll_at = Instant::now() + Duration::from_millis(100);
    fixture.write("nodes.json", 2);
    fixture.nodes(2).await;
    assert!(fixture.store.watch.is_some(), "a new watch is made");
}

#[test]
fn ten_thousand_nodes_are_parsed_and_validated_quickly() {
    let text = text(10_000);
    let start = std::time::Instant::now();
    let cluster = file::parse(text.as_bytes()).unwrap();
    let took = start.elapsed();
    println!("parsed and validated 10,000 nodes ({} bytes) in {took:?}", text.len());
    assert_eq!(cluster.nodes().len(), 10_000);
    // An unoptimised build takes ten times as long.
    let limit = if cfg!(debug_assertions) { 2000 } else { 100 };
    assert!(took < Duration::from_millis(limit), "{took:?}");
}
