//! What a host keeps of large requests once they are answered.

use bytes::Bytes;
use reqwest::{Method, StatusCode};

use super::HostProcess;
use crate::stage::TOKEN;

const UPLOADS: usize = 64;
const UPLOAD_BYTES: usize = 64 << 20;
/// Less than one upload; a caching allocator has 192 MiB more after the first.
const MAX_GROWTH_BYTES: u64 = 48 << 20;
const BOUNDARY: &str = "boundary";

/// A form of [`UPLOAD_BYTES`] with an image that is none: it is read to its end and refused.
fn form() -> Bytes {
    let head = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"job_id\"\r\n\r\nlarge\r\n\
         --{BOUNDARY}\r\nContent-Disposition: form-data; name=\"garment_image\"\r\n\r\nhttps://example.com/a.png\r\n\
         --{BOUNDARY}\r\nContent-Disposition: form-data; name=\"masked_user_image\"; filename=\"a.png\"\r\n\r\n"
    );
    let tail = format!("\r\n--{BOUNDARY}--\r\n");
    let image = vec![b'x'; UPLOAD_BYTES - head.len() - tail.len()];
    [head.into_bytes(), image, tail.into_bytes()].concat().into()
}

/// Bytes of physical memory that a process has.
fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line VmRSS");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("KiB");
    kib << 10
}

#[tokio::test]
async fn a_host_gives_back_the_memory_of_large_uploads() {
    let limit = ("ATELIER__HOST__HTTP__MAX_IMAGE_BYTES", "67108864");
    let mut host = HostProcess::start(&[limit], &[]).await;
    host.wait_for("listening for HTTP", 1).await;
    let url = format!("http://{}/tryon", host.address());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let form = form();
    let before = resident_bytes(host.child.id());
    for _ in 0..UPLOADS {
        let request = client.request(Method::POST, &url).header("x-internal-auth", TOKEN).body(form.clone());
        let kind = format!("multipart/form-data; boundary={BOUNDARY}");
        let answer = request.header("content-type", kind).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
        let problem = answer.text().await.unwrap();
        assert!(problem.contains("must be a PNG, JPEG or WebP image"), "read to its end: {problem}");
    }
    let after = resident_bytes(host.child.id());
    assert!(after < before + MAX_GROWTH_BYTES, "{} MiB, {} MiB before the uploads", after >> 20, before >> 20);
}
