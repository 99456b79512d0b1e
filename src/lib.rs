//! atelier: a job out of an event, pictures in S3, a signed webhook out.

pub mod job;

pub mod engine;

pub mod workflow;

pub mod demo;
