//! The database, as a restart, a full disk and damage find it.

use super::*;

fn record(container_id: &str, addresses: &[&str]) -> PodRecord {
    PodRecord {
        key: AttachmentKey { container_id: container_id.into(), ifname: "eth0".into() },
        network: "podnet".into(),
        pod: PodIdentity { namespace: "default".into(), name: "web".into(), uid: "1".into() },
        netns: "/run/netns/web".into(),
        netns_id: NetnsId { device: u64::MAX, inode: 7 },
        host_ifname: format!("pn{container_id}"),
        host_ifindex: 0,
        mac: Mac([0x0a, 0x58, 10, 244, 1, 2]),
        mtu: 1500,
        route_mtu: 1450,
        mtu_requested: Some(1500),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        created: 1,
    }
}

#[test]
fn records_survive_a_reopen_and_leases_go_with_their_pod() {
    let folder = tempfile::tempdir().unwrap();
    let web = record("web", &["10.244.1.2", "fd00::2"]);
    {
        let mut database = Database::open(folder.path()).unwrap();
        database.set_setting("cursor", "a").unwrap();
        database.insert(&web, &[("other".into(), "c".into())]).unwrap();
        database.set_setting("cursor", "b").unwrap();
    }
    let mut database = Database::open(folder.path()).unwrap();
    assert_eq!(database.pods().unwrap().into_values().collect::<Vec<_>>(), std::slice::from_ref(&web));
    assert_eq!(database.setting("other").unwrap().as_deref(), Some("c"));
    assert_eq!(database.setting("cursor").unwrap().as_deref(), Some("b"));
    database.delete(&web.key).unwrap();
    database.delete(&web.key).unwrap();
    assert!(database.pods().unwrap().is_empty());
    database.insert(&record("other", &["10.244.1.2"]), &[]).unwrap();
}

#[test]
fn an_address_is_leased_once_and_a_failed_insert_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut database = Database::open(folder.path()).unwrap();
    database.insert(&record("a", &["10.244.1.2"]), &[]).unwrap();
    assert!(database.insert(&record("b", &["10.244.1.2", "fd00::3"]), &[]).is_err());
    assert_eq!(database.pods().unwrap().len(), 1);
    database.insert(&record("c", &["10.244.1.3", "fd00::3"]), &[]).unwrap();
}

#[test]
fn a_database_of_version_1_is_taken_over_without_what_was_never_answered() {
    let folder = tempfile::tempdir().unwrap();
    {
        let connection = Connection::open(folder.path().join("podnet.db")).unwrap();
        let schema = SCHEMA
            .replace("route_mtu     INTEGER NOT NULL,", "")
            .replace("mtu_requested INTEGER,", "")
            .replace("        created ", "        ready INTEGER NOT NULL,\n        created ");
        connection.execute_batch(&schema).unwrap();
        for (name, ready, ip) in [("web", 1, "10.244.1.2"), ("half", 0, "10.244.1.3")] {
            let row = format!(
                "INSERT INTO pods VALUES ('{name}', 'eth0', 'podnet', '', '', '', '/run/netns/web', -1, 7, 'pn{name}', 4, \
                 x'0a580af40102', 1500, '{ip}', NULL, {ready}, 1)"
            );
            connection.execute_batch(&row).unwrap();
        }
        connection.pragma_update(None, "user_version", 1).unwrap();
    }
    let mut database = Database::open(folder.path()).unwrap();
    let pods: Vec<_> = database.pods().unwrap().into_values().collect();
    assert_eq!(pods.len(), 1);
    assert_eq!((pods[0].host_ifname.as_str(), pods[0].route_mtu, pods[0].created), ("pnweb", 0, 1));
    database.insert(&record("new", &["10.244.1.3"]), &[]).unwrap();
}

#[test]
fn a_full_disk_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut database = Database::open(folder.path()).unwrap();
    // A page count at its limit fails as a file system without room does.
    database.connection.execute_batch("PRAGMA max_page_count = 4").unwrap();
    let error = (0..1000)
        .find_map(|number| database.insert(&record(&format!("c{number}"), &[]), &[]).err())
        .expect("the database grows without limit");
    let error = format!("{error:#}");
    assert!(error.contains("podnet.db") && error.contains("make room"), "{error}");
}

#[test]
fn a_second_daemon_a_corrupt_file_and_a_later_schema_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::open(folder.path()).unwrap();
    database.connection.execute_batch("PRAGMA user_version = 99").unwrap();
    let error = format!("{:#}", Database::open(folder.path()).unwrap_err());
    assert!(error.contains("another podnet daemon"), "{error}");
    assert!(Database::ensure_unused(folder.path()).is_err());
    drop(database);
    Database::ensure_unused(folder.path()).unwrap();
    let error = format!("{:#}", Database::open(folder.path()).unwrap_err());
    assert!(error.contains("version 99"), "{error}");
    std::fs::write(folder.path().join("podnet.db"), b"this is no database, whatever its name says").unwrap();
    let error = format!("{:#}", Database::open(folder.path()).unwrap_err());
    assert!(error.contains("corrupt"), "{error}");
}

#[test]
fn what_could_not_be_deleted_is_owed_and_settled_before_its_address_is_given_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut database = Database::open(folder.path()).unwrap();
    let a = record("a", &["10.244.1.2"]);
    database.insert(&a, &[]).unwrap();
    assert_eq!(database.settle().unwrap().len(), 0);
    database.owe(a.key.clone());
    assert!(database.insert(&record("b", &["10.244.1.2"]), &[]).is_err());
    database.connection.execute_batch("PRAGMA query_only = 1").unwrap();
    assert!(database.settle().is_err());
    database.connection.execute_batch("PRAGMA query_only = 0").unwrap();
    assert_eq!(database.settle().unwrap(), BTreeSet::from([a.key]));
    database.insert(&record("b", &["10.244.1.2"]), &[]).unwrap();
}

#[test]
fn a_database_is_new_until_it_has_adopted_pods() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Database::open(folder.path()).unwrap().is_new().unwrap());
    let mut database = Database::open(folder.path()).unwrap();
    assert!(database.is_new().unwrap());
    database.adopt(&[record("a", &["10.244.1.2"])]).unwrap();
    assert!(!database.is_new().unwrap());
    drop(database);
    let database = Database::open(folder.path()).unwrap();
    assert_eq!((database.is_new().unwrap(), database.pods().unwrap().len()), (false, 1));
}

#[test]
fn pods_of_an_earlier_boot_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let mut database = Database::open(folder.path()).unwrap();
    // Of a podnet that did not write down the boot.
    database.insert(&record("a", &["10.244.1.2"]), &[]).unwrap();
    assert_eq!(database.begin_boot("one").unwrap(), 0);
    assert_eq!(database.begin_boot("one").unwrap(), 0);
    assert_eq!(database.pods().unwrap().len(), 1);
    assert_eq!(database.begin_boot("two").unwrap(), 1);
    assert_eq!((database.pods().unwrap().len(), database.begin_boot("two").unwrap()), (0, 0));
}

#[test]
fn each_kind_of_damage_is_named_with_a_way_to_go_on() {
    let check = |what: &str, damage: &dyn Fn(&mut Vec<u8>)| {
        let folder = tempfile::tempdir().unwrap();
        let mut database = Database::open(folder.path()).unwrap();
        for number in 0..200 {
            database.insert(&record(&format!("c{number}"), &[&format!("10.244.1.{number}")]), &[]).unwrap();
        }
        drop(database);
        let path = folder.path().join("podnet.db");
        let mut bytes = std::fs::read(&path).unwrap();
        damage(&mut bytes);
        std::fs::write(&path, &bytes).unwrap();
        let error = format!("{:#}", Database::open(folder.path()).unwrap_err());
        assert!(error.contains("podnet.db") && error.contains("Move podnet.db"), "{what}: {error}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{what}: the file was changed");
        std::fs::rename(&path, folder.path().join("damaged.db")).unwrap();
        assert!(Database::open(folder.path()).unwrap().is_new().unwrap(), "{what}");
    };
    check("header", &|bytes| bytes[..16].fill(b'x'));
    check("a page overwritten in part", &|bytes| {
        let middle = bytes.len() / 2 / 4096 * 4096;
        bytes[middle..middle + 2048].fill(0xff);
    });
    check("cut short", &|bytes| bytes.truncate(bytes.len() / 2));
    check("an address that is none", &|bytes| {
        while let Some(at) = bytes.windows(11).position(|window| window == b"10.244.1.19") {
            bytes[at] = b'x';
        }
    });
}
