//! The try-on service around this node: its asset service gets the images, its load balancer hears that the node is free.
//!
//! - `POST {asset_service.callback_url}`, multipart: `job_id`, `user_id`, `session_id`, `provider`, `node_id`, `model_version`,
//!   `inference_time_ms`, and `output_image` or `error`; with `X-Internal-Auth`, `webhook-id` and `webhook-timestamp`. Any 2xx is success, all
//!   else is tried again.
//! - Then, once, `POST {load_balancer.url}/job_complete` with `{node_id, job_id, metadata}`.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use url::Url;

use super::multipart::{Form, Part};
use super::{backend, webhook_id};
use crate::job::JobId;
use crate::job::metadata::Metadata;
use crate::job::notification::{AssetResult, Images, Message, Notification, NotificationTarget, TryOnResult};
use crate::job::outcome::{JobError, Problem, Record};
use crate::job::task::ModelName;
use crate::job::trace::Trace;
use crate::setting::{Secret, SettingError};
use crate::shown;

/// Settings of section `asset_service`: who gets the result.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AssetService {
    /// Without it no one gets a callback.
    pub callback_url: Option<String>,
    /// What the asset service knows us by.
    pub internal_auth_token: Option<Secret>,
}

/// Settings of section `load_balancer`: the service that is notified when this node is free again.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoadBalancer {
    pub url: Option<String>,
}

/// The service's addresses, and what this node reports to it of itself.
#[derive(Clone)]
pub struct TryOnService {
    pub(super) asset_service: Option<(Url, Secret)>,
    /// With its path.
    pub(super) load_balancer: Option<Url>,
    node_id: String,
    model: ModelName,
    images: Arc<dyn Images>,
}

impl TryOnService {
    /// `model`: the model that this node serves.
    ///
    /// # Errors
    /// Names the setting that is missing or wrong.
    pub fn new(
        asset_service: &AssetService,
        load_balancer: &LoadBalancer,
        node_id: &str,
        model: &ModelName,
        images: Arc<dyn Images>,
    ) -> Result<Self, SettingError> {
        let load_balancer = match &load_balancer.url {
            Some(address) => backend::base("load_balancer.url", address)?.join("job_complete").ok(),
            None => None,
        };
        Ok(Self {
            asset_service: asset_target(asset_service)?,
            load_balancer,
            node_id: node_id.to_owned(),
            model: model.clone(),
            images,
        })
    }

    /// The notifications of a try-on that has ended: as its record says, or with the error.
    pub(super) fn notifications(&self, of: &NotificationTarget<'_>, ended: Result<&Record, &Problem>) -> Vec<Notification> {
        let (Some(job_id), Some(requester)) = (of.job_id, of.requester) else { return Vec::new() };
        // Both services know a job by its id alone, and the id is another job's.
        if ended.is_err_and(Problem::is_conflict) {
            return Vec::new();
        }
        let (word, inference_time_ms, result) = match ended {
            Ok(record) => {
                let inference_time_ms = record.timings_ms.get("infer").copied().unwrap_or_default();
                ("asset_complete", inference_time_ms, TryOnResult::Images(record.images.clone()))
            }
            Err(problem) => ("asset_failed", 0, TryOnResult::Error(problem.message.clone())),
        };
        let asset = self.asset_service.is_some().then(|| Notification {
            id: webhook_id(of.prefix, &[word, job_id.as_str()]),
            trace: Trace::current().or(of.trace),
            message: Message::AssetService(AssetResult {
                job_id: job_id.to_string(),
                requester: requester.clone(),
                node_id: self.node_id.clone(),
                model_version: self.model.as_str().to_owned(),
                inference_time_ms,
                result,
            }),
        });
        let metadata = of.callback.map(|callback| callback.metadata.clone()).unwrap_or_default();
        let free = serde_json::to_string(&Free { node_id: &self.node_id, job_id, metadata }).ok();
        let free = free.filter(|_| self.load_balancer.is_some()).map(|body| Notification {
            id: webhook_id(of.prefix, &["job_complete", job_id.as_str()]),
            trace: Trace::current().or(of.trace),
            message: Message::LoadBalancer { body },
        });
        asset.into_iter().chain(free).collect()
    }

    /// The callback's body, with the images as they lie in the bucket.
    ///
    /// # Errors
    /// When an image could not be read.
    pub(super) async fn form(&self, of: &AssetResult) -> Result<Form, JobError> {
        let mut parts = vec![Part::text("job_id", &of.job_id)];
        for (name, text) in
            [("user_id", &of.requester.user_id), ("session_id", &of.requester.session_id), ("provider", &of.requester.provider)]
        {
            parts.extend(text.as_ref().map(|text| Part::text(name, text)));
        }
        parts.push(Part::text("node_id", &of.node_id));
        parts.push(Part::text("model_version", &of.model_version));
        parts.push(Part::text("inference_time_ms", &of.inference_time_ms.to_string()));
        match &of.result {
            TryOnResult::Error(error) => parts.push(Part::text("error", error)),
            TryOnResult::Images(images) => {
                for image in images {
                    let ending = image.key.rsplit_once('.').map_or("png", |(_, ending)| ending);
                    let bytes = self.images.bytes(image).await?;
                    parts.push(Part::file("output_image", &format!("result.{ending}"), &image.content_type, bytes));
                }
            }
        }
        Ok(Form::new(&parts))
    }
}

/// The load balancer hears that this node takes the next job.
#[derive(Serialize)]
struct Free<'a> {
    node_id: &'a str,
    job_id: &'a JobId,
    metadata: Metadata,
}

fn asset_target(settings: &AssetService) -> Result<Option<(Url, Secret)>, SettingError> {
    let Some(address) = &settings.callback_url else { return Ok(None) };
    let url = Url::parse(address).ok().filter(|url| matches!(url.scheme(), "http" | "https")).ok_or_else(|| {
        let problem = format!("must be an address such as https://assets.example.com/callback, got {}", shown::text(address));
        SettingError::new("asset_service.callback_url", problem)
    })?;
    let token = settings.internal_auth_token.clone().ok_or_else(|| {
        SettingError::new("asset_service.internal_auth_token", "must be set next to callback_url (INTERNAL_API_TOKEN)")
    })?;
    backend::check_header("asset_service.internal_auth_token", &token)?;
    Ok(Some((url, token)))
}

impl fmt::Debug for TryOnService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TryOnService")
            .field("asset_service", &self.asset_service)
            .field("load_balancer", &self.load_balancer)
            .finish_non_exhaustive()
    }
}
