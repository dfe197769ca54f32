//! Sequences of requests against a file server on a temporary tree: whatever the guest does, nothing outside the share changes,
//! the read-only share stays as it was, and no set-id bit or special file appears.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use fuse_wire::client::{Client, RawSetAttr};
use fuse_wire::{Handle, NodeId, RequestHandler, Server};
use hostfs::{HostFs, Options, Share};

/// Names that a guest might try; the good ones first.
const NAMES: [&[u8]; 16] = [
    b"a",
    b"b",
    b"c",
    b"dir",
    b"link-out",
    b"link-up",
    b"tool",
    b"secret",
    b"..",
    b".",
    b"",
    b"../outside",
    b"/etc",
    b"a/b",
    b"\xff",
    b"0",
];

/// Bytes of the input, taken one after the other; when they are used up, the run ends.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u64> {
        let byte = self.byte()?;
        Some(match byte >> 6 {
            0 => u64::from(byte),
            1 => u64::from(byte & 0x3f) << 12,
            2 => u64::from(byte & 0x3f) << 24,
            _ => u64::MAX >> (byte & 0x3f),
        })
    }

    fn name(&mut self) -> Option<&'static [u8]> {
        Some(NAMES[usize::from(self.byte()?) % NAMES.len()])
    }
}

struct Guest<'s> {
    client: Client<'s>,
    nodes: Vec<NodeId>,
    handles: Vec<Handle>,
}

impl Guest<'_> {
    fn node(&self, input: &mut Input<'_>) -> Option<NodeId> {
        let pick = usize::from(input.byte()?);
        Some(self.nodes.get(pick % (self.nodes.len() + 1)).copied().unwrap_or(NodeId(pick as u64)))
    }

    fn handle(&self, input: &mut Input<'_>) -> Option<Handle> {
        let pick = usize::from(input.byte()?);
        Some(self.handles.get(pick % (self.handles.len() + 1)).copied().unwrap_or(Handle(pick as u64)))
    }

    fn step(&mut self, input: &mut Input<'_>) -> Option<()> {
        let kind = input.byte()? % 26;
        match kind {
            0..=5 => self.step_node(kind, input)?,
            6..=13 => self.step_name(kind, input)?,
            14..=21 => self.step_handle(kind, input)?,
            22 => _ = self.client.opendir(self.node(input)?).map(|handle| self.handles.push(handle)),
            23 => {
                let plus = input.byte()? & 1 == 1;
                _ = self.client.readdir(self.handle(input)?, input.number()?, 4096, plus);
            }
            24 => {
                // Anything at all.
                let (opcode, len) = (u32::from(input.byte()?) % 64, usize::from(input.byte()?));
                let node = self.node(input)?;
                let body = input.0.get(..len.min(input.0.len()))?;
                input.0 = &input.0[body.len()..];
                // FUSE_SYNCFS would make every run wait for the host's disk.
                if opcode != 50 {
                    _ = self.client.call(opcode, node, body, 4096);
                }
            }
            _ => {
                self.client.uid.set(u32::from(input.byte()?));
                self.client.gid.set(self.client.uid.get() / 2);
            }
        }
        Some(())
    }

    fn step_node(&mut self, kind: u8, input: &mut Input<'_>) -> Option<()> {
        let node = self.node(input)?;
        match kind {
            0 => _ = self.client.getattr(node, Some(self.handle(input)?)),
            1 => {
                let set = RawSetAttr {
                    valid: input.number()? as u32,
                    handle: self.handle(input)?.0,
                    size: input.number()? & 0xff_ffff,
                    mode: input.number()? as u32,
                    uid: input.number()? as u32,
                    mtime: input.number()?,
                    ..RawSetAttr::default()
                };
                _ = self.client.setattr(node, set);
            }
            2 => _ = self.client.readlink(node),
            3 => _ = self.client.open(node, input.number()? as u32).map(|handle| self.handles.push(handle)),
            4 => _ = self.client.forget(node, input.number()?),
            _ => {
                let names: [&[u8]; 4] =
                    [b"user.a", b"security.capability", b"user.vivarium.owner", b"system.posix_acl_access"];
                let name = names[usize::from(input.byte()?) % names.len()];
                _ = self.client.setxattr(node, name, b"1:2", 0);
                _ = self.client.getxattr(node, name);
                _ = self.client.listxattr(node);
                _ = self.client.removexattr(node, name);
            }
        }
        Some(())
    }

    fn step_name(&mut self, kind: u8, input: &mut Input<'_>) -> Option<()> {
        let (node, name) = (self.node(input)?, input.name()?);
        let seen = match kind {
            6 => self.client.lookup(node, name),
            7 => self.client.mkdir(node, name, input.number()? as u32),
            8 => self.client.mknod(node, name, (input.number()? as u32) ^ 0o100000),
            9 => self.client.symlink(node, name, b"../../outside/secret"),
            10 => self.client.link(self.node(input)?, node, name),
            11 => match self.client.create(node, name, input.number()? as u32, input.number()? as u32) {
                Ok((seen, handle)) => {
                    self.handles.push(handle);
                    Ok(seen)
                }
                Err(errno) => Err(errno),
            },
            12 => {
                let (to, new, flags) = (self.node(input)?, input.name()?, u32::from(input.byte()? % 4));
                _ = self.client.rename(node, name, to, new, flags);
                return Some(());
            }
            _ => {
                _ = match input.byte()? & 1 {
                    0 => self.client.unlink(node, name),
                    _ => self.client.rmdir(node, name),
                };
                return Some(());
            }
        };
        if let Ok(seen) = seen {
            assert_eq!(seen.mode & 0o6000, 0, "a set-id bit is shown");
            assert_eq!(seen.rdev, 0, "a device number is shown");
            self.nodes.push(seen.node);
        }
        Some(())
    }

    fn step_handle(&mut self, kind: u8, input: &mut Input<'_>) -> Option<()> {
        let handle = self.handle(input)?;
        match kind {
            14 => _ = self.client.read(handle, input.number()?, (input.number()? as u32).min(1 << 16)),
            15 => {
                let data = vec![input.byte()?; usize::from(input.byte()?)];
                _ = self.client.write(handle, input.number()? & 0xff_ffff, &data, input.number()? as u32);
            }
            16 => _ = self.client.release(handle),
            17 => {
                let (offset, length) = (input.number()? & 0xff_ffff, input.number()? & 0xff_ffff);
                _ = self.client.fallocate(handle, offset, length, u32::from(input.byte()?));
            }
            18 => _ = self.client.lseek(handle, input.number()?, u32::from(input.byte()?)),
            19 => {
                let to = (self.handle(input)?, input.number()? & 0xff_ffff);
                _ = self.client.copy_file_range((handle, input.number()?), to, input.number()? & 0xff_ffff);
            }
            20 => _ = self.client.flush(handle),
            _ => _ = self.client.releasedir(handle),
        }
        Some(())
    }
}

/// One input: a sequence of requests.
pub(crate) fn run(data: &[u8]) {
    let base = Path::new("/dev/shm");
    let dir = if base.is_dir() { tempfile::TempDir::new_in(base) } else { tempfile::TempDir::new() }.unwrap();
    for (name, content) in [("outside/secret", "secret"), ("ro/file", "fixed"), ("share/tool", "tool")] {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let share = dir.path().join("share");
    std::fs::create_dir(share.join("dir")).unwrap();
    std::fs::set_permissions(share.join("tool"), PermissionsExt::from_mode(0o4755)).unwrap();
    symlink("../outside", share.join("link-out")).unwrap();
    symlink("..", share.join("dir/link-up")).unwrap();
    {
        let shares =
            vec![Share::open(&share, false).unwrap(), Share::open(&dir.path().join("ro"), true).unwrap()];
        let options =
            Options { max_node_bytes: 64 << 9, max_handles: 16, max_directories: 2, ..Options::default() };
        let server = Server::new(HostFs::new(shares, options));
        let client = Client::start(&server).unwrap();
        let mut nodes = vec![NodeId::ROOT];
        nodes.extend([&b"0"[..], b"1"].map(|name| client.lookup(NodeId::ROOT, name).unwrap().node));
        let mut guest = Guest { client, nodes, handles: Vec::new() };
        let mut input = Input(data);
        for _ in 0..200 {
            if guest.step(&mut input).is_none() {
                break;
            }
        }
        // Whatever the guest did, what is saved can be gone on with.
        server.restore(&server.save()).unwrap();
        server.reset();
        let (nodes, handles) = server.file_system().load();
        assert!(nodes == 2 && handles == 0, "{nodes} nodes, {handles} handles are left");
    }
    assert_eq!(std::fs::read(dir.path().join("outside/secret")).unwrap(), b"secret");
    assert_eq!(
        std::fs::metadata(dir.path().join("outside/secret")).unwrap().mode(),
        0o100644 & !umask(dir.path())
    );
    assert_eq!(std::fs::read(dir.path().join("ro/file")).unwrap(), b"fixed");
    for (name, count) in [("", 3), ("outside", 1), ("ro", 1)] {
        assert_eq!(std::fs::read_dir(dir.path().join(name)).unwrap().count(), count, "in {name:?}");
    }
    check_tree(&share, &share.join("tool"));
}

/// The bits that this process's umask takes, seen on a file made before.
fn umask(dir: &Path) -> u32 {
    0o644 & !std::fs::metadata(dir.join("ro/file")).unwrap().mode()
}

/// Nothing that the guest made is set-id or special.
fn check_tree(dir: &Path, but: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let stat = std::fs::symlink_metadata(&path).unwrap();
        let kind = stat.file_type();
        assert!(kind.is_file() || kind.is_dir() || kind.is_symlink(), "{path:?} is special");
        if kind.is_file() && path != but {
            // The one that was there before may have been renamed, and keeps its bit while nobody writes to it.
            let is_tool = std::fs::read(&path).is_ok_and(|content| content == b"tool");
            assert!(stat.mode() & 0o6000 == 0 || is_tool, "{path:?} has a set-id bit");
        }
        if kind.is_dir() {
            check_tree(&path, but);
        }
    }
}
