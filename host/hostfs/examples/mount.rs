//! Mounts shares through this machine's own kernel, to try the file server with ordinary programs:
//! `mount MOUNTPOINT SHARE[:ro]…`, as root; ends with `umount MOUNTPOINT`.

#[path = "../tests/mounted/mod.rs"]
mod mounted;

use std::path::Path;

use hostfs::{HostFs, Options, Share};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [at, shares @ ..] = arguments.as_slice() else {
        eprintln!("usage: mount MOUNTPOINT SHARE[:ro]…");
        std::process::exit(2);
    };
    let open = |share: &String| {
        let (path, read_only) =
            share.strip_suffix(":ro").map_or((share.as_str(), false), |path| (path, true));
        Share::open(Path::new(path), read_only)
    };
    let shares: Result<Vec<Share>, _> = shares.iter().map(open).collect();
    let outcome = shares
        .map_err(|error| error.to_string())
        .and_then(|shares| mounted::Mounted::new(Path::new(at), HostFs::new(shares, Options::default()), 4));
    match outcome {
        Ok(mounted) => mounted.wait(),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
}
