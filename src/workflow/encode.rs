//! Turns a painted picture into the bytes of a file.
