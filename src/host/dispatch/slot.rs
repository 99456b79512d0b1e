//! What one handler of the host is at.

/// What a handler is at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    Starting,
    Idle,
    /// Ids of the jobs it has.
    Busy(Vec<String>),
    /// It is to be started again after a pause; the text says why it ended.
    Down(String),
    /// It has no process: others have the memory of its device.
    Unloaded,
    /// It ends, so that another one has its memory.
    Unloading,
}

impl Slot {
    /// As metrics have them.
    pub(super) const STATES: [&'static str; 4] = ["starting", "idle", "busy", "down"];
    /// The same where handlers share a device.
    pub(super) const SHARING_STATES: [&'static str; 6] = ["starting", "idle", "busy", "down", "unloaded", "unloading"];

    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Busy(_) => "busy",
            Self::Down(_) => "down",
            Self::Unloaded => "unloaded",
            Self::Unloading => "unloading",
        }
    }

    /// Whether its handler has its model ready.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self, Self::Idle | Self::Busy(_))
    }
}
