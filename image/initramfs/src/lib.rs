//! The initial RAM disk (in progress).
