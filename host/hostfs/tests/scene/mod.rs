//! A folder of the host served to a client that speaks the wire, as a guest's kernel would.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::{Path, PathBuf};

use fuse_wire::client::{Client, Seen};
use fuse_wire::{NodeId, Server};
use hostfs::{HostFs, Options, Share};
use tempfile::TempDir;

pub(crate) const O_RDONLY: u32 = 0;
pub(crate) const O_WRONLY: u32 = 1;
pub(crate) const O_RDWR: u32 = 2;
pub(crate) const O_EXCL: u32 = 0o200;
pub(crate) const O_TRUNC: u32 = 0o1000;
pub(crate) const O_APPEND: u32 = 0o2000;

pub(crate) const ROOT: NodeId = NodeId::ROOT;

/// A temporary folder with a writable share in it, and something beside that no guest may reach.
pub(crate) struct Scene {
    pub(crate) dir: TempDir,
    pub(crate) server: Server<HostFs>,
}

impl Scene {
    pub(crate) fn new() -> Scene {
        Scene::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Scene {
        Scene::serving(options, |dir| vec![Share::open(&dir.join("share"), false).unwrap()])
    }

    pub(crate) fn read_only() -> Scene {
        Scene::serving(Options::default(), |dir| vec![Share::open(&dir.join("share"), true).unwrap()])
    }

    pub(crate) fn serving(options: Options, shares: impl FnOnce(&Path) -> Vec<Share>) -> Scene {
        let dir = TempDir::new().unwrap();
        std::fs::create_dir(dir.path().join("share")).unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        std::fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        let shares = shares(dir.path());
        Scene { server: Server::new(HostFs::new(shares, options)), dir }
    }

    pub(crate) fn client(&self) -> Client<'_> {
        Client::start(&self.server).unwrap()
    }

    /// A path in the share, on the host.
    pub(crate) fn host(&self, path: &str) -> PathBuf {
        self.dir.path().join("share").join(path)
    }

    pub(crate) fn outside(&self, path: &str) -> PathBuf {
        self.dir.path().join("outside").join(path)
    }

    pub(crate) fn put(&self, path: &str, content: &str) {
        std::fs::write(self.host(path), content).unwrap();
    }

    pub(crate) fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.host(path)).unwrap()
    }
}

/// The root of share 0.
pub(crate) fn share(client: &Client<'_>) -> Seen {
    client.lookup(ROOT, b"0").unwrap()
}

/// Whether this process may do anything to any file, as root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs the tests of this binary again as an ordinary user, if this is root; `but` is the one that calls this.
pub(crate) fn run_all_as_ordinary_user(but: &str) {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65534;
    if !is_root() {
        return; // the whole run is an ordinary user's
    }
    let dir = TempDir::new().unwrap();
    let (binary, tmp) = (dir.path().join("tests"), dir.path().join("tmp"));
    std::fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    std::fs::create_dir(&tmp).unwrap();
    for path in [dir.path(), &binary, &tmp] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    std::os::unix::fs::chown(&tmp, Some(NOBODY), Some(NOBODY)).unwrap();
    let mut command = std::process::Command::new(&binary);
    let output = command.args(["--skip", but]).env("TMPDIR", &tmp).uid(NOBODY).gid(NOBODY).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains(" passed") && !text.contains(" 0 passed"), "{text}");
}
