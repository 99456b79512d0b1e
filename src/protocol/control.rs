//! The host's word to a running handler: `cancel JOB_ID`, `preview JOB_ID` and `no-preview JOB_ID`, a line each, on standard input.
//!
//! `ATELIER_CONTROL=stdio` announces it and `ATELIER_PROTOCOL` names the version. The end of the input is the end of the host.

use std::collections::BTreeMap;

use super::{Mismatch, VERSION};
use crate::job::JobId;

const CONTROL: &str = "ATELIER_CONTROL";
const PROTOCOL: &str = "ATELIER_PROTOCOL";
const STDIO: &str = "stdio";
const CANCEL: &str = "cancel ";
const PREVIEW: &str = "preview ";
const NO_PREVIEW: &str = "no-preview ";

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlCommand {
    /// The job of this id is to stop before its next denoising step.
    Cancel(String),
    /// Someone looks at the job of this id, or no one any more.
    Preview { job_id: String, is_wanted: bool },
}

impl ControlCommand {
    /// The line, with its end.
    #[must_use]
    pub fn encode(&self) -> String {
        match self {
            Self::Cancel(job_id) => format!("{CANCEL}{job_id}\n"),
            Self::Preview { job_id, is_wanted: true } => format!("{PREVIEW}{job_id}\n"),
            Self::Preview { job_id, is_wanted: false } => format!("{NO_PREVIEW}{job_id}\n"),
        }
    }

    /// None: a host of another release says what is not known here.
    #[must_use]
    pub fn decode(line: &str) -> Option<Self> {
        let line = line.trim_end();
        let job_id = |prefix: &str| Some(JobId::new(line.strip_prefix(prefix)?).ok()?.to_string());
        if let Some(job_id) = job_id(CANCEL) {
            return Some(Self::Cancel(job_id));
        }
        let preview = |prefix, is_wanted| Some(Self::Preview { job_id: job_id(prefix)?, is_wanted });
        preview(PREVIEW, true).or_else(|| preview(NO_PREVIEW, false))
    }
}

/// Why the environment cannot be that of a handler.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("the environment variable {CONTROL} must be `{STDIO}`, as `atelier host` sets it, or not be set")]
    Unknown,
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
}

/// The variables that a host starts a handler with.
#[must_use]
pub fn encode_environment() -> [(&'static str, String); 2] {
    [(CONTROL, STDIO.to_owned()), (PROTOCOL, VERSION.to_string())]
}

/// Whether `atelier host` runs this process. A host that names no version is taken for one that speaks ours.
///
/// # Errors
/// [`ControlError`] for another kind of control, or another version of it.
pub fn decode_environment(environment: &BTreeMap<String, String>) -> Result<bool, ControlError> {
    match environment.get(CONTROL).map(String::as_str) {
        None => return Ok(false),
        Some(STDIO) => {}
        Some(_) => return Err(ControlError::Unknown),
    }
    match environment.get(PROTOCOL) {
        Some(host) if *host != VERSION.to_string() => Err(Mismatch { host: host.clone(), handler: VERSION.to_string() }.into()),
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let cancel = ControlCommand::Cancel("job-1".into());
        assert_eq!(cancel.encode(), "cancel job-1\n");
        assert_eq!(ControlCommand::decode(&cancel.encode()), Some(cancel.clone()));
        assert_eq!(ControlCommand::decode("cancel job-1\r\n"), Some(cancel));
        for is_wanted in [true, false] {
            let preview = ControlCommand::Preview { job_id: "job-1".into(), is_wanted };
            assert_eq!(ControlCommand::decode(&preview.encode()), Some(preview));
        }
        for other in ["", "preview", "no-preview a/b", "cancel", "cancel ", "cancel a/b", "regenerate job-1"] {
            assert_eq!(ControlCommand::decode(other), None, "{other:?}");
        }
    }

    fn environment(variables: &[(&str, &str)]) -> BTreeMap<String, String> {
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_host_is_known_by_the_environment() {
        let own = encode_environment().map(|(name, value)| (name.to_owned(), value));
        assert!(decode_environment(&BTreeMap::from(own)).unwrap());
        assert!(!decode_environment(&environment(&[])).unwrap());
        assert!(!decode_environment(&environment(&[("ATELIER_PROTOCOL", "7")])).unwrap(), "no one speaks");
        assert!(decode_environment(&environment(&[("ATELIER_CONTROL", "stdio")])).unwrap());
        let error = decode_environment(&environment(&[("ATELIER_CONTROL", "socket")])).unwrap_err();
        assert!(error.to_string().contains("ATELIER_CONTROL must be `stdio`"), "{error}");
    }

    #[test]
    fn another_version_is_an_error_that_names_both() {
        for host in ["1", "3", "", "one"] {
            let error = decode_environment(&environment(&[("ATELIER_CONTROL", "stdio"), ("ATELIER_PROTOCOL", host)]));
            let message = error.unwrap_err().to_string();
            assert!(message.contains(&format!("version {host} of")), "{message}");
            assert!(message.contains("this handler speaks version 2"), "{message}");
        }
    }
}
