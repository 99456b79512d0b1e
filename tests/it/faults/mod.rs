//! The fault campaign: whole hosts with real handlers, and everything around them fails while jobs go through.
//!
//! After each fault three numbers must be 0: jobs lost, jobs generated again although their record was there, and jobs whose
//! caller heard another number of terminal `webhook-id`s than one. `bench/faults` prints them as a table.

// Builds without debug assertions have no points.
#[cfg(debug_assertions)]
mod aimed;
mod around;
mod brokers;
pub(crate) mod campaign;
mod processes;
mod soak;
#[cfg(debug_assertions)]
mod twins;

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use serde::Serialize;

/// How a campaign ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Row {
    pub(crate) what: String,
    /// Accepted by the host.
    pub(crate) jobs: usize,
    /// Reported as `complete`; the others were reported as `failed`.
    pub(crate) complete: usize,
    /// Without a terminal notification, or reported as `complete` without a record in the bucket.
    pub(crate) lost: usize,
    /// Images stored again after the job's record.
    pub(crate) regenerated: usize,
    /// Jobs that had another number of different terminal `webhook-id`s than one.
    pub(crate) terminal_ids_off: usize,
    /// Hosts that ended although nobody ended them, or did not end in order when asked.
    pub(crate) hosts_down: usize,
    /// Attempts whose images were stored beside those of the first; allowed where no record was there yet.
    pub(crate) attempts_again: usize,
}

impl Row {
    /// Whether everything is as it must always be.
    pub(crate) fn is_clean(&self) -> bool {
        (self.lost, self.regenerated, self.terminal_ids_off, self.hosts_down) == (0, 0, 0, 0) && self.jobs > 0
    }
}

static ROWS: Mutex<Vec<Row>> = Mutex::new(Vec::new());

/// Keeps a row for the table where `ATELIER_FAULTS_OUT` names a file.
fn keep(row: &Row) {
    if let Some(file) = crate::servers::environment("ATELIER_FAULTS_OUT") {
        let mut rows = ROWS.lock().unwrap();
        rows.push(row.clone());
        fs::write(Path::new(&file), serde_json::to_string_pretty(&*rows).unwrap()).unwrap();
    }
}

/// Keeps a row and checks it.
fn report(row: &Row) {
    keep(row);
    assert!(row.is_clean(), "{row:?}");
}

/// Jobs of each campaign: 20, or what `ATELIER_FAULT_JOBS` says.
fn jobs() -> usize {
    let asked = crate::servers::environment("ATELIER_FAULT_JOBS");
    asked.map_or(20, |jobs| jobs.into_string().unwrap().parse().expect("ATELIER_FAULT_JOBS is a number"))
}
