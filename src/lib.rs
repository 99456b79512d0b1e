//! atelier: a job out of an event, images in S3, a signed webhook out.

pub mod shown;

pub mod job;

pub mod setting;

pub mod authorities;

pub mod backoff;

pub mod clock;

pub mod fault_point;

pub mod service;

pub mod subprocess;

pub mod safety;

pub mod protocol;

pub mod aws;

pub mod metrics;

pub mod outbound;

pub mod store;

pub mod models;

pub mod notify;

pub mod image_file;

pub mod content_credentials;

pub mod invisible_mark;

pub mod workflow;

pub mod events;

pub mod handler;

pub mod host;

pub mod config;

pub mod telemetry;

pub mod log;

pub mod start;

pub mod doctor;

pub mod serve;

pub mod inspect;

pub mod invoke;

pub mod client;

pub mod demo;

pub mod role;
