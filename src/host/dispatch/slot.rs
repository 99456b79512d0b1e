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
}

impl Slot {
    /// As metrics have them.
    pub(super) const STATES: [&'static str; 4] = ["starting", "idle", "busy", "down"];

    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Busy(_) => "busy",
            Self::Down(_) => "down",
        }
    }

    /// Whether its handler has its model ready.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self, Self::Idle | Self::Busy(_))
    }
}
