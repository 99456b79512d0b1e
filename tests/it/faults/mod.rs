//! The fault campaign: whole hosts with real handlers, and everything around them fails while jobs go through.
//!
//! After each fault three numbers must be 0: jobs lost, jobs generated again although their record was there, and jobs whose
//! caller heard another number of terminal `webhook-id`s than one. `bench/faults` prints them as a table.

mod around;
mod brokers;
mod campaign;
mod processes;

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use serde::Serialize;

/// How a campaign ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Row {
    pub(crate) what: &'static str,
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
}

static ROWS: Mutex<Vec<Row>> = Mutex::new(Vec::new());

/// Checks a row, and keeps it for the table where `ATELIER_FAULTS_OUT` names a file.
fn report(row: &Row) {
    if let Some(file) = crate::servers::environment("ATELIER_FAULTS_OUT") {
        let mut rows = ROWS.lock().unwrap();
        rows.push(row.clone());
        fs::write(Path::new(&file), serde_json::to_string_pretty(&*rows).unwrap()).unwrap();
    }
    assert_eq!((row.lost, row.regenerated, row.terminal_ids_off), (0, 0, 0), "{row:?}");
    assert!(row.jobs > 0, "{row:?}");
}

/// Jobs of each campaign: 20, or what `ATELIER_FAULT_JOBS` says.
fn jobs() -> usize {
    let asked = crate::servers::environment("ATELIER_FAULT_JOBS");
    asked.map_or(20, |jobs| jobs.into_string().unwrap().parse().expect("ATELIER_FAULT_JOBS is a number"))
}
