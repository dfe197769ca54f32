//! Where things lie on this host: the XDG folders and nothing else.

use std::env;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The folders that Vivarium uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// What cannot be had again: sandboxes (`$XDG_STATE_HOME/vivarium`).
    pub state: PathBuf,
    /// What can be had again: packages, images (`$XDG_CACHE_HOME/vivarium`).
    pub cache: PathBuf,
    /// What the user decides: the policy (`$XDG_CONFIG_HOME/vivarium`).
    pub config: PathBuf,
    /// The user's home, to shorten paths in messages and to refuse sharing all of it.
    pub home: PathBuf,
}

impl Places {
    /// From the environment of this process.
    pub fn from_env() -> Result<Self> {
        Self::from(|name| env::var_os(name).map(PathBuf::from))
    }

    fn from(lookup: impl Fn(&str) -> Option<PathBuf>) -> Result<Self> {
        // The XDG specification wants relative values ignored.
        let absolute = |name: &str| lookup(name).filter(|path| path.is_absolute());
        let home = absolute("HOME").ok_or_else(|| Error::SetUp {
            why: "HOME is not set to an absolute path, so there is no place to keep sandboxes".into(),
            hint: Some("set HOME and try again".into()),
        })?;
        let state = absolute("XDG_STATE_HOME").unwrap_or_else(|| home.join(".local/state"));
        let cache = absolute("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
        let config = absolute("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
        let [state, cache, config] = [state, cache, config].map(|folder| folder.join("vivarium"));
        Ok(Self { state, cache, config, home })
    }

    /// The folder that holds one folder for each sandbox.
    pub fn sandboxes(&self) -> PathBuf {
        self.state.join("sandboxes")
    }

    /// The folder of the root certificate that the guests of this host trust.
    pub fn certificates(&self) -> PathBuf {
        self.state.join("ca")
    }

    /// A path as a user writes it: with `~` for the home folder.
    pub fn short(&self, path: &Path) -> String {
        match path.strip_prefix(&self.home) {
            Ok(rest) if rest.as_os_str().is_empty() => "~".into(),
            Ok(rest) => format!("~/{}", rest.display()),
            Err(_) => path.display().to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xdg_variables_win_and_relative_ones_are_ignored() {
        let places = Places::from(|name| match name {
            "HOME" => Some("/home/u".into()),
            "XDG_STATE_HOME" => Some("/s".into()),
            "XDG_CACHE_HOME" => Some("not/absolute".into()),
            _ => None,
        })
        .unwrap();
        assert_eq!(places.sandboxes(), Path::new("/s/vivarium/sandboxes"));
        assert_eq!(places.cache, Path::new("/home/u/.cache/vivarium"));
        assert_eq!(places.short(Path::new("/home/u/src/x")), "~/src/x");
        assert_eq!(places.short(Path::new("/home/user")), "/home/user");
        assert!(Places::from(|_| None).is_err());
    }
}
