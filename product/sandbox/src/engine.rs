//! Which engine runs a sandbox here, and why.
