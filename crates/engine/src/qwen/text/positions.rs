//! Where the tokens of a prompt stand for the text model: text on a line, images on planes next to it (M-RoPE).

use crate::qwen::packing::Grid;

/// Time, row and column.
pub type Position = [u32; 3];

/// A run of a prompt's tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum Run {
    Text(Vec<u32>),
    /// Of the image with this place among the prompt's images.
    Image(usize),
}

/// One position a token: text counts on all axes alike; an image stands still in time while its rows and columns count from where it
/// begins, and text goes on behind its longer side (transformers' `get_rope_index`).
#[must_use]
pub fn positions(runs: &[Run], grids: &[Grid]) -> Vec<Position> {
    let mut positions = Vec::new();
    let mut next = 0;
    for run in runs {
        match run {
            Run::Text(tokens) => {
                positions.extend((next..next + tokens.len() as u32).map(|place| [place; 3]));
                next += tokens.len() as u32;
            }
            Run::Image(index) => {
                let Grid { height, width } = grids[*index];
                for row in 0..height as u32 {
                    positions.extend((0..width as u32).map(|column| [next, next + row, next + column]));
                }
                next += height.max(width) as u32;
            }
        }
    }
    positions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_on_behind_a_images_longer_side() {
        let runs = [Run::Text(vec![7, 8]), Run::Image(0), Run::Text(vec![9])];
        let positions = positions(&runs, &[Grid { height: 2, width: 3 }]);
        let image = [[2, 2, 2], [2, 2, 3], [2, 2, 4], [2, 3, 2], [2, 3, 3], [2, 3, 4]];
        assert_eq!(positions, [&[[0; 3], [1; 3]][..], &image, &[[5; 3]]].concat());
    }
}
