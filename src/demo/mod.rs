//! `atelier demo`: the whole function on one machine, with nothing else installed.

pub mod sheet;
