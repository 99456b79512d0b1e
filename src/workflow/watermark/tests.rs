//! What a watermark must hold on any picture: where it is, that it can be read, that nothing else changes.

use proptest::prelude::*;

use super::*;
use crate::job::task::Opacity;

const ANCHORS: [Anchor; 9] = [
    Anchor::TopLeft,
    Anchor::Top,
    Anchor::TopRight,
    Anchor::Left,
    Anchor::Center,
    Anchor::Right,
    Anchor::BottomLeft,
    Anchor::Bottom,
    Anchor::BottomRight,
];

fn watermark(text: &str, position: Anchor, opacity: f64) -> Watermark {
    Watermark { text: text.into(), position, opacity: Opacity::new(opacity).unwrap() }
}

fn picture(width_px: u32, height_px: u32, colour: impl Fn(u32, u32) -> [u8; 3]) -> Picture {
    let pixels = (0..height_px).flat_map(|y| (0..width_px).map(move |x| (x, y)));
    Picture { width_px, height_px, rgb: pixels.flat_map(|(x, y)| colour(x, y)).collect(), seed: 0 }
}

/// Any colours, the same for the same place.
fn noise(x: u32, y: u32) -> [u8; 3] {
    let mixed = (x.wrapping_mul(0x9E37_79B9) ^ y.wrapping_mul(0x85EB_CA6B)).wrapping_mul(0xC2B2_AE35);
    let [red, green, blue, _] = (mixed ^ (mixed >> 15)).to_be_bytes();
    [red, green, blue]
}

fn changed_box(before: &Picture, after: &Picture) -> Option<(u32, u32, u32, u32)> {
    let pixels = before.rgb.chunks_exact(3).zip(after.rgb.chunks_exact(3)).enumerate();
    let places = pixels.filter(|(_, (before, after))| before != after).map(|(at, _)| at as u32);
    let places = places.map(|at| (at % before.width_px, at / before.width_px));
    places.fold(None, |all, (x, y)| {
        let (left, top, right, bottom) = all.unwrap_or((x, y, x, y));
        Some((left.min(x), top.min(y), right.max(x), bottom.max(y)))
    })
}

/// WCAG contrast between the letters and what surrounds them, both as means over the whole text; a pixel counts for as much
/// as it is covered.
fn contrast(picture: &Picture, watermark: &Watermark) -> f32 {
    let stamp = Stamp::new(watermark, picture.width_px, picture.height_px).unwrap();
    let mut signed = picture.clone();
    draw(&mut signed, watermark).unwrap();
    let (mut ink, mut around) = ((0.0, 0.0), (0.0, 0.0));
    stamp.for_each_pixel(&mut signed.rgb, picture.width_px, |rgb, letter, outlined| {
        let edge = outlined - letter;
        ink = (ink.0 + luminance(rgb) * letter.powi(2), ink.1 + letter.powi(2));
        around = (around.0 + luminance(rgb) * edge.powi(2), around.1 + edge.powi(2));
    });
    let (ink, around) = (ink.0 / ink.1 + 0.05, around.0 / around.1 + 0.05);
    ink.max(around) / ink.min(around)
}

#[test]
fn stands_out_on_every_ground() {
    type Ground = fn(u32, u32) -> [u8; 3];
    let grounds: [(&str, Ground); 8] = [
        ("black", |_, _| [0; 3]),
        ("white", |_, _| [255; 3]),
        ("mid-grey", |_, _| [128; 3]),
        ("light grey", |_, _| [160; 3]),
        ("red", |_, _| [200, 30, 30]),
        ("noise", noise),
        ("stripes", |x, _| if x / 6 % 2 == 0 { [0; 3] } else { [255; 3] }),
        ("checkers", |x, y| if (x / 16 + y / 16) % 2 == 0 { [20, 20, 90] } else { [250, 240, 200] }),
    ];
    for (name, ground) in grounds {
        // 3:1 is what WCAG 2.2 asks of large text; on a thumbnail most of a letter is edge, which the mean counts too.
        for (side_px, least) in [(128, 2.2), (512, 3.0)] {
            let ratio = contrast(&picture(side_px, side_px, ground), &watermark("© Ada", Anchor::BottomRight, 0.6));
            assert!(ratio >= least, "{name} at {side_px} px: {ratio}");
        }
    }
}

#[test]
fn stands_where_its_anchor_says() {
    let before = picture(320, 192, |_, _| [90; 3]);
    for (index, anchor) in ANCHORS.into_iter().enumerate() {
        let mut after = before.clone();
        draw(&mut after, &watermark("© Ada", anchor, 1.0)).unwrap();
        let (left, top, right, bottom) = changed_box(&before, &after).unwrap();
        let third = |low: u32, high: u32, side: u32| (low + high) * 3 / (2 * side);
        assert_eq!((third(left, right, 320), third(top, bottom, 192)), (index as u32 % 3, index as u32 / 3), "{anchor:?}");
    }
}

#[test]
fn shrinks_a_long_text_and_refuses_one_that_cannot_be_read() {
    let mut small = picture(256, 256, |_, _| [90; 3]);
    draw(&mut small, &watermark("painted by Augusta Ada King", Anchor::Top, 0.6)).unwrap();
    let error = check(&watermark(&"word ".repeat(24), Anchor::Top, 0.6), 256, 256).unwrap_err().to_string();
    assert!(error.starts_with("watermark.text: does not fit legibly on a picture of 256x256 px: it needs "), "{error}");
}

#[test]
fn names_the_field_and_the_character() {
    let error = check_text("Ada \u{1F58C}").unwrap_err().to_string();
    assert!(error.starts_with("watermark.text: has a character that the built-in font cannot set: U+1F58C"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn changes_nothing_outside_its_margins(
        text in "\\PC{1,40}",
        anchor in prop::sample::select(ANCHORS.to_vec()),
        width_px in 0_u32..400,
        height_px in 0_u32..400,
        opacity in 0.0..=1.0,
    ) {
        let before = picture(width_px, height_px, noise);
        let mut after = before.clone();
        let watermark = watermark(&text, anchor, opacity);
        let drawn = draw(&mut after, &watermark);
        prop_assert_eq!(drawn.is_ok(), check(&watermark, width_px, height_px).is_ok());
        match drawn.ok().and_then(|()| changed_box(&before, &after)) {
            None => prop_assert_eq!(&before, &after),
            Some((left, top, right, bottom)) => {
                let stamp = Stamp::new(&watermark, width_px, height_px).unwrap();
                let margin = margin_px(width_px, height_px) as u32;
                prop_assert!(left >= margin && top >= margin);
                prop_assert!(right + margin < width_px && bottom + margin < height_px);
                prop_assert!(left as usize >= stamp.left_px && (right as usize) < stamp.left_px + stamp.width_px);
            }
        }
    }

    #[test]
    fn a_higher_opacity_never_shows_less(
        low in 0.0..=1.0,
        high in 0.0..=1.0,
        anchor in prop::sample::select(ANCHORS.to_vec()),
        level in 0_u8..=255,
    ) {
        let (low, high) = if low <= high { (low, high) } else { (high, low) };
        let before = picture(96, 64, |x, y| if x < 48 { noise(x, y) } else { [level; 3] });
        let change = |opacity: f64| -> Vec<u8> {
            let mut after = before.clone();
            draw(&mut after, &watermark("Ünïcode", anchor, opacity)).unwrap();
            before.rgb.iter().zip(&after.rgb).map(|(before, after)| before.abs_diff(*after)).collect()
        };
        prop_assert!(change(low).iter().zip(change(high)).all(|(low, high)| *low <= high));
        prop_assert!(change(0.0).iter().all(|change| *change == 0));
    }
}
