//! Where tokens stand on three axes: the place in the sequence, the row and the column.

use crate::qwen::packing::Grid;

/// What both sequences are filled up to multiples of with learned tokens (`SEQ_MULTI_OF`).
const MULTIPLE: usize = 32;

/// Tokens that fill a sequence of `tokens` up.
pub(super) fn padding(tokens: usize) -> usize {
    tokens.next_multiple_of(MULTIPLE) - tokens
}

/// The positions of the text's tokens and its padding's: they count from 1.
pub(super) fn text_positions(tokens: usize) -> Vec<[usize; 3]> {
    (1..=tokens + padding(tokens)).map(|place| [place, 0, 0]).collect()
}

/// Those of an image behind `text` tokens, padding among them: all of it stands at one place, and its padding at none.
pub(super) fn image_positions(grid: Grid, text: usize) -> Vec<[usize; 3]> {
    let rows = (0..grid.height).flat_map(|row| (0..grid.width).map(move |column| [text + 1, row, column]));
    rows.chain(std::iter::repeat_n([0; 3], padding(grid.tokens()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_filled_up_and_an_image_stands_behind_its_text() {
        assert_eq!([0, 1, 31, 32, 33, 64].map(padding), [0, 31, 1, 0, 31, 0]);
        assert_eq!(text_positions(33).len(), 64);
        assert_eq!(text_positions(33)[63], [64, 0, 0], "its padding counts on");
        let image = image_positions(Grid { height: 3, width: 5 }, 64);
        assert_eq!((image.len(), image[0], image[14], image[15]), (32, [65, 0, 0], [65, 2, 4], [0; 3]));
    }
}
