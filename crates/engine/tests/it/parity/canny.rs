//! Canny's edges against OpenCV's, byte by byte (`tests/oracle/canny.py`).

use atelier_engine::canny::canny;
use candle_core::Device;
use image::RgbImage;

use super::steered::fixtures;

#[test]
fn edges_are_those_of_opencv_byte_by_byte() {
    let reference = candle_core::safetensors::load(fixtures().join("canny.safetensors"), &Device::Cpu).expect("the reference");
    let mut compared = 0;
    for (key, expected) in &reference {
        let [name, low, high] = *key.split('/').collect::<Vec<_>>() else { continue };
        let image = &reference[name];
        let (height, width, _) = image.dims3().expect("an image");
        let pixels: Vec<u8> = image.flatten_all().and_then(|flat| flat.to_vec1()).expect("bytes");
        let image = RgbImage::from_raw(width as u32, height as u32, pixels).expect("an image");
        let edges = canny(&image, low.parse().expect("a threshold"), high.parse().expect("a threshold"));
        let expected: Vec<u8> = expected.flatten_all().and_then(|flat| flat.to_vec1()).expect("bytes");
        let differ = edges.iter().zip(&expected).filter(|(ours, theirs)| ours != theirs).count();
        assert_eq!((differ, edges.len()), (0, expected.len()), "{key}");
        compared += 1;
    }
    assert_eq!(compared, 77, "eleven images at seven pairs of thresholds");
}
