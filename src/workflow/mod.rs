//! The steps between a job and its pictures.

pub mod encode;
pub mod lettering;
pub mod watermark;
