//! What the user decides about the network of all sandboxes beside the policy, in `$XDG_CONFIG_HOME/vivarium/network.json`:
//!
//! ```json
//! { "schema": 1,
//!   "proxies": { "https": "http://proxy.example:3128", "no_proxy": ["intranet.example", "10.0.0.0/8"] } }
//! ```
//! Written by hand; read by the client that starts a sandbox, and by the shim whenever it changes.

use std::path::PathBuf;

use gateway::control::Proxies;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::policy_files;
use crate::error::Result;
use crate::places::Places;

/// The file's name.
pub const FILE: &str = "network.json";

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Checked by who reads the file.
    #[serde(rename = "schema")]
    _schema: u32,
    #[serde(default)]
    proxies: Upstream,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Upstream {
    http: Option<Url>,
    https: Option<Url>,
    all: Option<Url>,
    no_proxy: Vec<Direct>,
}

/// A proxy's URL; checked while it is read, so that a mistake is said with its line and column.
struct Url(String);

impl<'de> Deserialize<'de> for Url {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Proxies::check_url(&text).map_err(D::Error::custom)?;
        Ok(Self(text))
    }
}

/// What is reached without a proxy.
struct Direct(String);

impl<'de> Deserialize<'de> for Direct {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Proxies::check_no_proxy(&text).map_err(D::Error::custom)?;
        Ok(Self(text))
    }
}

/// The file.
pub fn path(places: &Places) -> PathBuf {
    places.config.join(FILE)
}

/// The proxies that it names, if it is there.
pub(super) fn proxies(places: &Places) -> Result<Option<Proxies>> {
    let Some(settings) = policy_files::read::<Settings>(&path(places))? else { return Ok(None) };
    let Upstream { http, https, all, no_proxy } = settings.proxies;
    let [http, https, all] = [http, https, all].map(|url| url.map(|url| url.0));
    let no_proxy = no_proxy.into_iter().map(|direct| direct.0).collect();
    Ok(Some(Proxies { http, https, all, no_proxy }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Proxies> {
        let root = tempfile::tempdir().unwrap();
        let folder = || root.path().to_owned();
        let places = Places { state: folder(), cache: folder(), config: folder(), home: folder() };
        assert_eq!(proxies(&places).unwrap(), None);
        std::fs::write(path(&places), text).unwrap();
        Ok(proxies(&places)?.unwrap())
    }

    #[test]
    fn proxies_are_read() {
        let all = read(
            r#"{"schema":1,"proxies":{"https":"http://u:p@proxy.example:3128","all":"socks5://10.0.0.1","no_proxy":["intranet.example","10.0.0.0/8",".x:8080","*"]}}"#,
        )
        .unwrap();
        assert_eq!(all.https.as_deref(), Some("http://u:p@proxy.example:3128"));
        assert_eq!((all.http, all.all.as_deref()), (None, Some("socks5://10.0.0.1")));
        assert_eq!(all.no_proxy.len(), 4);
        assert_eq!(read(r#"{"schema":1}"#).unwrap(), Proxies::default());
    }

    #[test]
    fn a_mistake_is_one_sentence_with_its_place_and_without_a_password() {
        for (text, said, column) in [
            ("{\"schema\":1,\n \"proxies\":{\"https\":\"ftp://u:hunter2@p\"}}", "begins with http://", 39),
            ("{\"schema\":1,\n \"proxies\":{\"all\":\"http://u:hunter2@:1\"}}", "host", 39),
            ("{\"schema\":1,\n \"proxies\":{\"http\":5}}", "invalid type", 20),
            ("{\"schema\":1,\n \"proxies\":{\"https_proxy\":\"\"}}", "unknown field", 25),
            ("{\"schema\":1,\n \"proxies\":{\"no_proxy\":[\"a b\"]}}", "\"a b\" is neither", 29),
            ("{\"schema\":1,\n\"prox", "EOF", 5),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains(FILE), "{error}");
            // At the last character of what is wrong, or right behind it.
            let places = [column, column + 1].map(|column| format!("line 2 column {column}"));
            assert!(places.iter().any(|place| error.ends_with(place)), "{error}");
            assert!(!error.contains("hunter2") && !error.contains('\n'), "{error}");
        }
        assert!(read("{}").unwrap_err().to_string().contains("schema"));
        assert!(read(r#"{"schema":2,"later":true}"#).unwrap_err().to_string().contains('2'));
    }
}
