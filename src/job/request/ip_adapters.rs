//! The field `ip_adapters` of task `generate`.

use serde::{Deserialize, Deserializer, de};
use serde_json::{Value, json};

use super::field;
use crate::job::task::control::NetName;
use crate::job::task::ip_adapter::{ImagePrompt, IpAdapterScale, PromptImages};
use crate::job::url::AssetUrl;

/// All of their images are in memory at once, as large as they were sent.
const MAX: usize = 2;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IpAdapterBody {
    name: NetName,
    #[serde(deserialize_with = "images")]
    images: PromptImages,
    scale: Option<IpAdapterScale>,
}

impl IpAdapterBody {
    pub(super) fn read(self) -> ImagePrompt {
        ImagePrompt { name: self.name, images: self.images, scale: self.scale.unwrap_or_else(IpAdapterScale::one) }
    }
}

pub(super) fn ip_adapters<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpAdapterBody>, D::Error> {
    let adapters: Vec<IpAdapterBody> = field::or_default(deserializer)?;
    let count = adapters.len();
    if count <= MAX { Ok(adapters) } else { Err(de::Error::custom(format!("must be at most {MAX}, got {count}"))) }
}

fn images<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PromptImages, D::Error> {
    PromptImages::new(Vec::<AssetUrl>::deserialize(deserializer)?).map_err(de::Error::custom)
}

/// What decides the images.
pub(super) fn canonical(ImagePrompt { name, images, scale }: &ImagePrompt) -> Value {
    let images: Vec<String> = images.get().iter().map(AssetUrl::identity).collect();
    json!([name, images, scale])
}
