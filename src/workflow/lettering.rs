//! Sets one line of text in the font that ships inside the binary.
