//! The broker that a source belongs to, whatever becomes of a connection to it.

use super::handed_back::HandedBack;
use super::settings::Settings;

/// What every session of one source has in common.
pub(super) struct Broker {
    pub(super) settings: Settings,
    /// PEM of `settings.ca_file`.
    pub(super) authorities: Option<String>,
    pub(super) handed_back: HandedBack,
}
