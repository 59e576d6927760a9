//! The node's database: pods, their address leases, and the little else that must survive a restart.
//!
//! SQLite in write-ahead mode with `synchronous=NORMAL`: a committed transaction survives the end of the process at
//! any instant; after a loss of power the file is consistent but may lack the last commits, and no pod survives that
//! either. So an ADD pays no disk flush, which on an edge node's flash would cost more than all else together.

use std::{
    collections::{BTreeMap, BTreeSet},
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

/// Setting of a database that was made a moment ago, so that it knows nothing of the pods that the node may have.
const NEW: &str = "INSERT INTO settings VALUES ('new', '');";

/// Setting that holds the boot in which the pods were added.
const BOOT: &str = "boot";

const DELETE: &str = "DELETE FROM pods WHERE container_id = ?1 AND ifname = ?2";

const SET_SETTING: &str = "INSERT INTO settings VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2";

/// The open database. One process has it at a time.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    path: PathBuf,
    /// Pods that are gone, which could not be written yet.
    owed: BTreeSet<AttachmentKey>,
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
        // SQLite would say "unable to open database file", whatever the reason.
        tempfile::tempfile_in(state_dir).with_context(|| {
            format!("state folder {}: make it writable, or set state-dir to a folder that is", state_dir.display())
        })?;
        let path = state_dir.join("podnet.db");
        let open = || -> Result<Self> {
            let connection = Connection::open(&path)?;
            connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
            match version {
                0 => connection
                    .execute_batch(&format!("BEGIN; {SCHEMA} {NEW} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"))?,
                1 => connection.execute_batch(&format!(
                    "BEGIN; {MIGRATION_1_TO_2} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                ))?,
                SCHEMA_VERSION => {}
                later => {
                    bail!("its schema has version {later}, this podnet knows {SCHEMA_VERSION}: run the newer podnet")
                }
            }
            // The whole check: an index that contradicts its table would give an address twice.
            let verdict: String = connection.pragma_query_value(None, "integrity_check", |row| row.get(0))?;
            ensure!(verdict == "ok", corrupt(&verdict));
            let database = Self { connection, path: path.clone(), owed: BTreeSet::new() };
            // What is well-formed for SQLite need not be a pod.
            database.pods().map_err(|error| anyhow::anyhow!(corrupt(&format!("{error:#}"))))?;
            Ok(database)
        };
        open().map_err(|error| {
            use rusqlite::ErrorCode::{DatabaseBusy, DatabaseCorrupt, DatabaseLocked, DiskFull, NotADatabase};
            let name = path.display();
            match error.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code) {
                Some(DatabaseBusy | DatabaseLocked) => {
                    anyhow::anyhow!("database {name} is in use: another podnet daemon runs on this state folder")
                }
                Some(NotADatabase | DatabaseCorrupt) => {
                    anyhow::anyhow!("open database {name}: {}", corrupt(&error.to_string()))
                }
                Some(DiskFull) => error.context(format!("open database {name}: make room on its file system")),
                _ => error.context(format!("open database {name}")),
            }
        })
    }

    /// Returns whether the database was made by this start, or by one that ended before [`Database::adopt`].
    pub fn is_new(&self) -> Result<bool> {
        Ok(self.setting("new")?.is_some())
    }

    /// Commits the pods that the node had before it had this database. From then on it is not new any more.
    pub fn adopt(&mut self, records: &[PodRecord]) -> Result<()> {
        let mut commit = || {
            let transaction = self.connection.transaction()?;
            for record in records {
                insert(&transaction, record)?;
            }
            transaction.execute("DELETE FROM settings WHERE name = 'new'", [])?;
            transaction.commit()
        };
        commit().map_err(|error| self.not_written(error))
    }

    /// Notes the boot of the node, and forgets the pods of an earlier one: no pod survives a boot, but names and numbers
    /// of namespaces begin anew. Returns how many were forgotten.
    pub fn begin_boot(&mut self, boot: &str) -> Result<usize> {
        let earlier = self.setting(BOOT)?;
        if earlier.as_deref() == Some(boot) {
            return Ok(0);
        }
        let mut commit = || {
            let transaction = self.connection.transaction()?;
            let forgotten = if earlier.is_some() { transaction.execute("DELETE FROM pods", [])? } else { 0 };
            transaction.execute(SET_SETTING, [BOOT, boot])?;
            transaction.commit().map(|()| forgotten)
        };
        commit().map_err(|error| self.not_written(error))
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
        let mut commit = || {
            let transaction = self.connection.transaction()?;
            insert(&transaction, record)?;
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
            .prepare_cached(DELETE)
            .and_then(|mut statement| statement.execute(params![key.container_id, key.ifname]))
            .map_err(|error| self.not_written(error))?;
        Ok(())
    }

    /// Remembers that a pod is gone, which could not be written: until [`Database::settle`], or the end of the process.
    pub fn owe(&mut self, key: AttachmentKey) {
        self.owed.insert(key);
    }

    /// Commits what is owed, and returns it. No pod may be inserted before: it could have an address of these.
    pub fn settle(&mut self) -> Result<BTreeSet<AttachmentKey>> {
        let mut commit = || {
            let transaction = self.connection.transaction()?;
            for key in &self.owed {
                transaction.prepare_cached(DELETE)?.execute(params![key.container_id, key.ifname])?;
            }
            transaction.commit()
        };
        if !self.owed.is_empty() {
            commit().map_err(|error| self.not_written(error))?;
        }
        Ok(std::mem::take(&mut self.owed))
    }

    /// Says which file could not be written, and what to do about it.
    fn not_written(&self, error: rusqlite::Error) -> anyhow::Error {
        let hint = match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => "; make room on its file system",
            Some(rusqlite::ErrorCode::ReadOnly) => "; make its file system writable",
            Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
                "; it is corrupt: restart the daemon, which says more"
            }
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
        self.connection
            .prepare_cached(SET_SETTING)
            .and_then(|mut statement| statement.execute([name, value]))
            .map_err(|error| self.not_written(error))?;
        Ok(())
    }

    /// Returns the addresses of the pods that this boot of the node has.
    pub fn addresses_in_use(&self) -> Result<Vec<IpAddr>> {
        let noted = self.setting(BOOT)?;
        let is_earlier = noted.is_some_and(|noted| current_boot().is_some_and(|current| noted != current));
        let pods = if is_earlier { BTreeMap::new() } else { self.pods()? };
        Ok(pods.into_values().flat_map(|pod| pod.addresses).collect())
    }

    /// Returns what [`Database::addresses_in_use`] says of a folder's database; `None` if there is no database.
    ///
    /// # Errors
    ///
    /// As [`Database::open`].
    pub fn leased(state_dir: &Path) -> Result<Option<Vec<IpAddr>>> {
        if !state_dir.join("podnet.db").exists() {
            return Ok(None);
        }
        Self::open(state_dir)?.addresses_in_use().map(Some)
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

/// Says that a database is corrupt, and what to do about it.
fn corrupt(why: &str) -> String {
    format!(
        "it is corrupt ({why}). Pods keep their network meanwhile. Move podnet.db and podnet.db-wal away and start the daemon again: \
         it takes over the pods that run"
    )
}

fn insert(transaction: &rusqlite::Transaction<'_>, record: &PodRecord) -> rusqlite::Result<()> {
    let address = |v4: bool| record.addresses.iter().find(|address| address.is_ipv4() == v4).map(IpAddr::to_string);
    transaction
        .prepare_cached("INSERT INTO pods VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18)")?
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
    Ok(())
}

/// Returns the ID of the node's boot (`random(4)`); `None` if the kernel does not tell.
#[must_use]
pub fn current_boot() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|boot| boot.trim().to_owned())
}

#[cfg(test)]
mod tests;
