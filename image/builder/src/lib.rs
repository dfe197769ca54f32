//! The base image: made of Debian's packages by the host as far as bytes go, and by a guest where programs have to run.

mod contents;

pub use contents::make_lock;

/// Where packages of the npm registry are taken from: `VIV_NPM_REGISTRY`, or the registry itself.
#[must_use]
pub fn npm_registry() -> String {
    let setting = std::env::var("VIV_NPM_REGISTRY").ok().filter(|value| !value.is_empty());
    let registry = setting.unwrap_or_else(|| "https://registry.npmjs.org".to_owned());
    registry.trim_end_matches('/').to_owned()
}
