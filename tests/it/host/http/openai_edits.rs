//! OpenAI's edits by what their model is: one that has tokens of 16 pixels, and one that is shown images in place of starting from one.

use atelier::host::Function;
use atelier::host::functions::Functions;
use atelier::job::capabilities::Capabilities;
use atelier::job::segmenter::Segmenter;
use atelier::job::task::{EditSidePx, ModelName, Task};
use atelier::job::upscalers::Upscalers;
use image::{ImageFormat, RgbaImage};
use reqwest::{Method, StatusCode};
use tokio::sync::watch;

use super::openai::{EDITS, assert_says, image_of_64x32, png_of, run, task, with_mask};
use super::tryon::Form;
use super::{Front, image, json_of};

/// In front of the one model of the catalogue, which can do this.
async fn front(capabilities: Capabilities) -> Front {
    let model = ModelName::new("tiny-sd").unwrap();
    let own = Function { model, capabilities, upscalers: Upscalers::default(), segmenter: Segmenter::default() };
    let functions = Functions::new(vec![own], watch::channel(Vec::new()).1);
    Front::open_with(|http| http.functions = functions).await
}

#[tokio::test]
async fn an_edit_of_any_shape_has_a_size_that_its_model_can_have() {
    let mut front = front(Capabilities::Flow).await;
    for (width, height) in [(64, 37), (41, 64), (64, 33)] {
        let form = Form::default().file("image", &png_of(RgbaImage::new(width, height))).text("prompt", "a mug");
        let request = front.request(Method::POST, EDITS);
        let (job, _) = run(&mut front, form.send(request)).await;
        let size = task(&job).size;
        assert!(size.width_px().is_multiple_of(16) && size.height_px().is_multiple_of(16), "{width}x{height}: {size:?}");
    }
}

#[tokio::test]
async fn a_model_that_is_shown_images_gets_an_edit() {
    let mut front = front(Capabilities::EditFlow).await;
    let files = [image_of_64x32(), image(ImageFormat::WebP, 18)];
    let form = Form::default().file("image[]", &files[0]).file("image[]", &files[1]).text("prompt", "a mug").text("seed", "7");
    let request = front.request(Method::POST, EDITS);
    let more = form.text("n", "2").text("lora", r#"[{"url": "s3://elsewhere/l.safetensors"}]"#).text("size", "auto");
    let (job, response) = run(&mut front, more.send(request)).await;
    assert_eq!(response.status(), StatusCode::OK);
    let Task::Edit(edit) = &job.task else { panic!("no edit: {job:?}") };
    assert_eq!((edit.prompt.as_str(), edit.seed.get(), edit.num_images.get()), ("a mug", 7, 2));
    assert_eq!((edit.width, edit.height, edit.loras.len(), edit.model.as_str()), (None, None, 1, "tiny-sd"));
    assert_eq!(edit.images.get().len(), 2);
    for (asset, file) in edit.images.get().iter().zip(&files) {
        let key = asset.to_string().split_once("/inputs/").map(|(_, rest)| format!("inputs/{rest}")).unwrap();
        assert_eq!(&std::fs::read(front.bucket.path(&key)).unwrap(), file);
    }
    let sized = Form::default().file("image", &files[0]).text("prompt", "a mug").text("size", "96x64");
    let request = front.request(Method::POST, EDITS);
    let (job, _) = run(&mut front, sized.send(request)).await;
    let Task::Edit(edit) = &job.task else { panic!("no edit: {job:?}") };
    assert_eq!([edit.width, edit.height].map(|side| side.map(EditSidePx::get)), [Some(96), Some(64)]);

    let one = || Form::default().file("image", &files[0]).text("prompt", "a mug");
    let four = (0..3).fold(one(), |form, _| form.file("image[]", &files[1]));
    for (form, param, says) in [
        (with_mask(), "mask", "is not read by this model"),
        (Form::default().text("prompt", "a mug"), "image", "must be 1 to 3 images for this model, got 0"),
        (four, "image", "got 4"),
        (one().file("image", b"no image"), "image[1]", "PNG"),
        (one().text("size", "72x64"), "size", "a multiple of 16"),
        (one().text("strength", "0.5"), "strength", "is not a field of this job"),
    ] {
        let response = form.send(front.request(Method::POST, EDITS)).await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{param}");
        assert_says(&json_of(response).await, param, says);
    }
}
