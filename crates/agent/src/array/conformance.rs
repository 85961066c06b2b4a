//! What every driver of an array must do.
