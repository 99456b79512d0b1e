//! Signs a picture: a line of text that stays legible on dark and on light.
