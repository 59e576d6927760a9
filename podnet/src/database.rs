//! The node's database: pods, their address leases, and the little else that must survive a restart.
//!
//! SQLite in write-ahead mode with `synchronous=NORMAL`: a committed transaction survives the end of the process at
//! any instant; after a loss of power the file is consistent but may lack the last commits, and no pod survives that
//! either. So an ADD pays no disk flush, which on an edge node's flash would cost more than all else together.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::{
    api::{AttachmentKey, Mac, PodIdentity},
    netns::NetnsId,
};

/// What the node remembers of an attached pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRecord {
    /// Key of the attachment.
    pub key: AttachmentKey,
    /// Name of the CNI network.
    pub network: String,
    /// Who the pod is.
    pub pod: PodIdentity,
    /// Path of the pod's network namespace.
    pub netns: String,
    /// Identity of the namespace behind that path, to tell it from a later one.
    pub netns_id: NetnsId,
    /// Name of the host-side veth.
    pub host_ifname: String,
    /// Index of the host-side veth; zero before it exists.
    pub host_ifindex: u32,
    /// MAC of the pod-side veth.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// MTU of the pod's default routes in bytes: smaller where the overlay carries what leaves the node.
    pub route_mtu: u32,
    /// Largest MTU that the ADD asked for; `None`: the node's.
    pub mtu_requested: Option<u32>,
    /// Leased addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Seconds since the epoch when the pod was added.
    pub created: u64,
}

/// Version of the schema, kept in `PRAGMA user_version`.
const SCHEMA_VERSION: i64 = 2;

// Few trees, because each one that a commit touches is another page to write. `ipv4` and `ipv6` are the leases: unique,
// and gone with their pod.
const SCHEMA: &str = "
    CREATE TABLE pods (
        container_id  TEXT NOT NULL,
        ifname        TEXT NOT NULL,
        network       TEXT NOT NULL,
        pod_namespace TEXT NOT NULL,
        pod_name      TEXT NOT NULL,
        pod_uid       TEXT NOT NULL,
        netns         TEXT NOT NULL,
        netns_device  INTEGER NOT NULL,
        netns_inode   INTEGER NOT NULL,
        host_ifname   TEXT NOT NULL,
        host_ifindex  INTEGER NOT NULL,
        mac           BLOB NOT NULL,
        mtu           INTEGER NOT NULL,
        ipv4          TEXT UNIQUE,
        ipv6          TEXT UNIQUE,
        created       INTEGER NOT NULL,
        route_mtu     INTEGER NOT NULL,
        mtu_requested INTEGER,
        PRIMARY KEY (container_id, ifname)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE settings (
        name  TEXT NOT NULL PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
";

/// Leads from version 1 to version 2: pods got MTUs that follow the uplinks, and are stored once they are attached.
const MIGRATION_1_TO_2: &str = "
    DELETE FROM pods WHERE ready = 0;
    ALTER TABLE pods DROP COLUMN ready;
    ALTER TABLE pods ADD COLUMN route_mtu INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE pods ADD COLUMN mtu_requested INTEGER;
";

const SET_SETTING: &str = "INSERT INTO settings VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2";

/// The open database. One process has it at a time.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    path: PathBuf,
}

impl Database {
    /// Opens the database in a folder, and creates both where they are missing.
    ///
    /// # Errors
    ///
    /// The folder or file cannot be used (and why), another daemon has it open, or it is corrupt or of a later
    /// version; nothing has been changed then.
    pub fn open(state_dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(state_dir).with_context(|| format!("create state folder {}", state_dir.display()))?;
        let path = state_dir.join("podnet.db");
        let open = || -> Result<Self> {
            let connection = Connection::open(&path)?;
            connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
            match version {
                0 => connection
                    .execute_batch(&format!("BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"))?,
                1 => connection.execute_batch(&format!(
                    "BEGIN; {MIGRATION_1_TO_2} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                ))?,
                SCHEMA_VERSION => {}
                later => {
                    bail!("its schema has version {later}, this podnet knows {SCHEMA_VERSION}: run the newer podnet")
                }
            }
            let verdict: String = connection.pragma_query_value(None, "quick_check", |row| row.get(0))?;
            ensure!(verdict == "ok", "it is corrupt ({verdict}): move it away, and podnet starts with no pods");
            Ok(Self { connection, path: path.clone() })
        };
        open().map_err(|error| {
            match error.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code) {
                Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
                    anyhow::anyhow!(
                        "database {} is in use: another podnet daemon runs on this state folder",
                        path.display()
                    )
                }
                Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => anyhow::anyhow!(
                    "database {} is corrupt ({error}): move it away, and podnet starts with no pods",
                    path.display()
                ),
                _ => error.context(format!("open database {}", path.display())),
            }
        })
    }

    /// Returns all pods, by key.
    pub fn pods(&self) -> Result<BTreeMap<AttachmentKey, PodRecord>> {
        let mut statement = self.connection.prepare(
            "SELECT container_id, ifname, network, pod_namespace, pod_name, pod_uid, netns, netns_device, netns_inode,
                    host_ifname, host_ifindex, mac, mtu, ipv4, ipv6, created,
                    route_mtu, mtu_requested FROM pods",
        )?;
        let mut rows = statement.query([])?;
        let mut pods = BTreeMap::new();
        while let Some(row) = rows.next()? {
            let key = AttachmentKey { container_id: row.get(0)?, ifname: row.get(1)? };
            let mut addresses = Vec::with_capacity(2);
            for column in [13, 14] {
                if let Some(address) = row.get::<_, Option<String>>(column)? {
                    let address =
                        address.parse().with_context(|| format!("database holds {address:?} as an address"))?;
                    addresses.push(address);
                }
            }
            let record = PodRecord {
                network: row.get(2)?,
                pod: PodIdentity { namespace: row.get(3)?, name: row.get(4)?, uid: row.get(5)? },
                netns: row.get(6)?,
                // SQLite integers are signed; device and inode numbers keep their bits.
                netns_id: NetnsId { device: row.get::<_, i64>(7)? as u64, inode: row.get::<_, i64>(8)? as u64 },
                host_ifname: row.get(9)?,
                host_ifindex: row.get(10)?,
                mac: Mac(row.get(11)?),
                mtu: row.get(12)?,
                addresses,
                created: row.get::<_, i64>(15)? as u64,
                route_mtu: row.get(16)?,
                mtu_requested: row.get(17)?,
                key: key.clone(),
            };
            pods.insert(key, record);
        }
        Ok(pods)
    }

    /// Commits a pod that is attached: its record, its leases, and settings with them.
    pub fn insert(&mut self, record: &PodRecord, settings: &[(String, String)]) -> Result<()> {
        let address = |v4: bool| record.addresses.iter().find(|address| address.is_ipv4() == v4).map(IpAddr::to_string);
        let mut commit = || {
            let transaction = self.connection.transaction()?;
            transaction
                .prepare_cached(
                    "INSERT INTO pods VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18)",
                )?
                .execute(params![
                    record.key.container_id,
                    record.key.ifname,
                    record.network,
                    record.pod.namespace,
                    record.pod.name,
                    record.pod.uid,
                    record.netns,
                    record.netns_id.device as i64,
                    record.netns_id.inode as i64,
                    record.host_ifname,
                    record.host_ifindex,
                    record.mac.0,
                    record.mtu,
                    address(true),
                    address(false),
                    record.created as i64,
                    record.route_mtu,
                    record.mtu_requested,
                ])?;
            for (name, value) in settings {
                transaction.prepare_cached(SET_SETTING)?.execute([name, value])?;
            }
            transaction.commit()
        };
        commit().map_err(|error| self.not_written(error))
    }

    /// Commits the MTUs of a pod.
    pub fn set_mtus(&mut self, key: &AttachmentKey, mtu: u32, route_mtu: u32) -> Result<()> {
        self.connection
            .prepare_cached("UPDATE pods SET mtu = ?3, route_mtu = ?4 WHERE container_id = ?1 AND ifname = ?2")
            .and_then(|mut statement| statement.execute(params![key.container_id, key.ifname, mtu, route_mtu]))
            .map_err(|error| self.not_written(error))?;
        Ok(())
    }

    /// Commits that a pod is gone, and its leases with it. One that is not there is success.
    pub fn delete(&mut self, key: &AttachmentKey) -> Result<()> {
        self.connection
            .prepare_cached("DELETE FROM pods WHERE container_id = ?1 AND ifname = ?2")
            .and_then(|mut statement| statement.execute(params![key.container_id, key.ifname]))
            .map_err(|error| self.not_written(error))?;
        Ok(())
    }

    /// Says which file could not be written, and what to do about it.
    fn not_written(&self, error: rusqlite::Error) -> anyhow::Error {
        let hint = match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => "; make room on its file system",
            Some(rusqlite::ErrorCode::ReadOnly) => "; make its file system writable",
            _ => "",
        };
        let context = format!("write database {}{hint}", self.path.display());
        anyhow::Error::from(error).context(context)
    }

    /// Returns a setting that [`Database::set_setting`] stored.
    pub fn setting(&self, name: &str) -> Result<Option<String>> {
        let mut statement = self.connection.prepare_cached("SELECT value FROM settings WHERE name = ?1")?;
        Ok(statement.query_row([name], |row| row.get(0)).optional()?)
    }

    /// Stores a setting.
    pub fn set_setting(&mut self, name: &str, value: &str) -> Result<()> {
        self.connection.prepare_cached(SET_SETTING)?.execute([name, value])?;
        Ok(())
    }

    /// Returns the addresses of the pods in a folder's database; none if there is no database.
    ///
    /// # Errors
    ///
    /// As [`Database::open`].
    pub fn leased(state_dir: &Path) -> Result<Vec<IpAddr>> {
        if !state_dir.join("podnet.db").exists() {
            return Ok(Vec::new());
        }
        Ok(Self::open(state_dir)?.pods()?.into_values().flat_map(|pod| pod.addresses).collect())
    }

    /// Makes sure that no daemon has the database of a folder open.
    ///
    /// # Errors
    ///
    /// One has.
    pub fn ensure_unused(state_dir: &Path) -> Result<()> {
        let path = state_dir.join("podnet.db");
        let exclusive = || -> rusqlite::Result<()> {
            let connection = Connection::open_with_flags(&path, rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
            connection.execute_batch("BEGIN EXCLUSIVE; ROLLBACK;")
        };
        match exclusive().map_err(|error| error.sqlite_error_code()) {
            Err(Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked)) => {
                bail!("database {} is in use: stop the podnet daemon that runs on this state folder", path.display())
            }
            // Absent, corrupt or unreadable: then no daemon has it.
            _ => Ok(()),
        }
    }

    /// Deletes the database's files.
    pub fn remove(state_dir: &Path) -> Result<()> {
        for name in ["podnet.db", "podnet.db-wal", "podnet.db-shm"] {
            let path = state_dir.join(name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
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
}
