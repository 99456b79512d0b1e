//! The contact sheet: all pictures of a demo in one grid with captions.
