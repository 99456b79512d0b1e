//! `atelier audit`: how the images of a job came about, from its record to the files themselves.

use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use aws_sdk_s3::Client;
use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use super::{anchors, report, source};
use crate::config::{Config, Environment};
use crate::content_credentials::verify::{State, verify};
use crate::image_file::notes;
use crate::job::JobId;
use crate::job::outcome::{Record, StoredImage};
use crate::job::request::tidy_prefix;
use crate::job::safety::{BlockedJob, SafetyCheck};
use crate::outbound::Outbound;
use crate::shown;
use crate::store::{self, Store};

/// There is nothing under this id.
const NOTHING: u8 = 3;

#[derive(clap::Args)]
pub struct Options {
    /// The caller's name for the job
    #[arg(value_parser = JobId::new)]
    job_id: JobId,
    /// Object key prefix of the job, where it named one [default: that of the model's manifest]
    #[arg(long, value_parser = tidy_prefix)]
    prefix: Option<String>,
    /// PEM of the roots that are trusted; without them no signer is, and credentials verify when nothing was changed
    #[arg(long, value_name = "FILE")]
    trust_anchors: Option<PathBuf>,
    /// Print one JSON object instead of lines
    #[arg(long)]
    json: bool,
}

/// What the bucket knows of a job.
#[derive(Serialize)]
struct Audit {
    job_id: String,
    place: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<Record>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked: Option<BlockedJob>,
    images: Vec<ImageAudit>,
    /// What is wrong with the record itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// An image of the record, and what lies in the bucket under its key.
#[derive(Serialize)]
struct ImageAudit {
    address: String,
    /// None: it is as the record says.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    /// None: there is no file to look into.
    credentials: Option<Credentials>,
}

/// What those of an image came to; none: it has none. One word in JSON.
struct Credentials(Option<State>);

/// Prints the chain. Exit code 0: all of it holds; 1: an image is not what its record says, or its credentials do not verify; 3: there is
/// neither a record nor a note that the job was not allowed.
///
/// # Errors
/// When the bucket cannot be read, or standard output cannot be written to.
pub async fn run(options: &Options, config: Option<&Path>, environment: &Environment) -> anyhow::Result<ExitCode> {
    let anchors = anchors(options.trust_anchors.as_deref())?;
    let settings = Config::load(config, environment)?;
    let prefix = match &options.prefix {
        Some(prefix) => prefix.clone(),
        None => settings.manifest(environment)?.defaults.prefix,
    };
    let store = Store::connect(&settings.store, Outbound::new(&settings.outbound)?).await?;
    let client = store::client(&settings.store).await?;
    let record = store.record(&prefix, &options.job_id).await?;
    let blocked = store.blocked(&prefix, &options.job_id).await?;
    let mut images = Vec::new();
    for image in record.iter().flat_map(|record| &record.images) {
        images.push(of_image(image, anchors.as_deref(), &client).await);
    }
    let place = format!("s3://{}/{prefix}{}/", store.bucket(), options.job_id);
    let problem = record.as_ref().and_then(|record| of_record(record, &options.job_id));
    let audit = Audit { job_id: options.job_id.to_string(), place, record, blocked, images, problem };
    let mut out = std::io::stdout().lock();
    if options.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&audit)?)?;
    } else {
        write!(out, "{audit}")?;
    }
    Ok(audit.code(anchors.is_some()))
}

/// What no record that was written here is.
fn of_record(Record { job_id, images, .. }: &Record, id: &JobId) -> Option<String> {
    if job_id != id.as_str() {
        return Some(format!("it is of job {}, and lies under this one's id", shown::text(job_id)));
    }
    images.is_empty().then(|| "it names no image".to_owned())
}

async fn of_image(
    StoredImage { bucket, key, sha256: recorded, bytes, .. }: &StoredImage,
    anchors: Option<&str>,
    client: &Client,
) -> ImageAudit {
    let address = format!("s3://{bucket}/{key}");
    let file = match source::object(client, bucket, key).await {
        Ok(file) => file,
        Err(error) => return ImageAudit { address, problem: Some(format!("{error:#}")), credentials: None },
    };
    let sha256 = base16ct::lower::encode_string(&Sha256::digest(&file));
    let problem = match recorded {
        Some(recorded) if *recorded != sha256 => Some(format!("has the SHA-256 {sha256}, and its record says {recorded}")),
        _ if *bytes != file.len() as u64 => Some(format!("has {} bytes, and its record says {bytes}", file.len())),
        Some(_) => None,
        // It cannot be told from another of this length.
        None => Some("its record has no SHA-256 to compare it with".to_owned()),
    };
    let format = notes::read(&file).map(|notes| notes.format);
    let credentials = match format.map(|format| verify(&file, format, anchors)) {
        Ok(Ok(found)) => found.map(|found| found.state),
        Ok(Err(_)) | Err(_) => Some(State::Invalid),
    };
    ImageAudit { address, problem, credentials: Some(Credentials(credentials)) }
}

impl Serialize for Credentials {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(state) => state.serialize(serializer),
            None => serializer.serialize_str("none"),
        }
    }
}

impl ImageAudit {
    fn holds(&self, names_anchors: bool, is_signed: bool) -> bool {
        let found = self.credentials.as_ref().and_then(|credentials| credentials.0);
        self.problem.is_none() && found.map_or(!is_signed, |state| super::holds(state, names_anchors))
    }
}

impl Audit {
    fn code(&self, names_anchors: bool) -> ExitCode {
        let Some(record) = &self.record else {
            return if self.blocked.is_some() { ExitCode::SUCCESS } else { ExitCode::from(NOTHING) };
        };
        let is_signed = record.provenance.signer.is_some();
        if self.problem.is_none() && self.images.iter().all(|image| image.holds(names_anchors, is_signed)) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "job          {}", self.job_id)?;
        writeln!(f, "lies under   {}", self.place)?;
        if let Some(blocked) = &self.blocked {
            let at = shown::moment(blocked.blocked_at_s);
            writeln!(
                f,
                "not allowed  {} ({}), at {at}, policy {}",
                blocked.block.category,
                blocked.block.stage.as_str(),
                blocked.policy
            )?;
            writeln!(f, "  request    {}", blocked.fingerprint)?;
            write_checks(f, &blocked.checks)?;
        }
        match &self.record {
            Some(record) => write_record(f, record)?,
            None => writeln!(f, "record       none: no job of this id is complete under this prefix")?,
        }
        if let Some(problem) = &self.problem {
            writeln!(f, "  problem    {problem}")?;
        }
        for ImageAudit { address, problem, credentials } in &self.images {
            writeln!(f, "image        {address}")?;
            writeln!(f, "  file       {}", problem.as_deref().unwrap_or("is the one of the record"))?;
            if let Some(Credentials(found)) = credentials {
                writeln!(f, "  credentials {}", found.map_or("none", report::in_words))?;
            }
        }
        Ok(())
    }
}

fn write_record(f: &mut fmt::Formatter<'_>, record: &Record) -> fmt::Result {
    let provenance = &record.provenance;
    writeln!(f, "record       at {}", shown::moment(record.finished_at_s))?;
    writeln!(f, "  request    {}", record.fingerprint)?;
    if let Some(trace) = &provenance.trace {
        writeln!(f, "  trace      {}", trace.to_traceparent())?;
    }
    if let Some(consent) = &provenance.consent {
        writeln!(f, "  consent    {}, {}", consent.basis.as_str(), consent.reference)?;
    }
    let licence = record.licence.as_deref().unwrap_or("no licence named");
    writeln!(f, "model        {}, {licence}", record.model)?;
    if let Some(sha256) = &provenance.manifest_sha256 {
        writeln!(f, "  manifest   {sha256}")?;
    }
    for (path, sha256) in &provenance.model_files {
        writeln!(f, "  file       {sha256}  {path}")?;
    }
    match &provenance.safety {
        Some(safety) => {
            writeln!(f, "safety       policy {}", safety.policy)?;
            write_checks(f, &safety.checks)?;
        }
        None => writeln!(f, "safety       nobody looked")?,
    }
    match &provenance.signer {
        Some(signer) => writeln!(f, "signed by    {}, certificate {}", signer.subject, signer.certificate_sha256),
        None => writeln!(f, "signed by    nobody"),
    }
}

fn write_checks(f: &mut fmt::Formatter<'_>, checks: &[SafetyCheck]) -> fmt::Result {
    for SafetyCheck { stage, backend, scores } in checks {
        let scores: Vec<String> = scores.iter().map(|(label, score)| format!("{label} {score}")).collect();
        let stage = stage.as_str();
        writeln!(f, "  {stage:<10} {backend}{}{}", if scores.is_empty() { "" } else { ": " }, scores.join(", "))?;
    }
    Ok(())
}
