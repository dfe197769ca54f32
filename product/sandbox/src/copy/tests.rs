use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use tar::{Builder, EntryType, Header};

use super::*;
use crate::workspace::Share;

/// An archive with entries as no honest `tar` makes them.
#[derive(Default)]
struct Forged(Vec<u8>);

impl Forged {
    fn entry(mut self, kind: EntryType, name: &[u8], link: &[u8], content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o6755);
        header.set_mtime(1_700_000_000);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..name.len()].copy_from_slice(name);
        gnu.linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &[u8], content: &[u8]) -> Self {
        self.entry(EntryType::Regular, name, b"", content)
    }

    fn folder(self, name: &[u8]) -> Self {
        self.entry(EntryType::Directory, name, b"", b"")
    }

    fn unpack(mut self, folder: &Path, to: &[u8]) -> Result<Vec<String>, CopyError> {
        self.0.resize(self.0.len() + 1024, 0);
        let folder = fs::File::open(folder).unwrap();
        unpacked(&self.0, std::os::fd::AsFd::as_fd(&folder), b"x", to)
    }
}

fn unpacked(
    archive: &[u8],
    folder: std::os::fd::BorrowedFd<'_>,
    from: &[u8],
    to: &[u8],
) -> Result<Vec<String>, CopyError> {
    let mut done = Done::default();
    unpack(archive, folder, from, to, &mut done).map(|()| done.left_out)
}

struct Hosts {
    root: tempfile::TempDir,
}

impl Hosts {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("in")).unwrap();
        fs::write(root.path().join("secret"), "untouched").unwrap();
        Self { root }
    }

    fn inside(&self) -> std::path::PathBuf {
        self.root.path().join("in")
    }

    /// Nothing but the folder and the untouched file is there.
    fn is_unharmed(&self) {
        let mut names: Vec<_> =
            fs::read_dir(self.root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["in", "secret"]);
        assert_eq!(fs::read_to_string(self.root.path().join("secret")).unwrap(), "untouched");
    }
}

#[test]
fn names_that_lead_elsewhere_end_the_copy() {
    for name in [
        &b"../secret"[..],
        b"x/../../secret",
        b"x/..",
        b"..",
        b"/etc/passwd",
        b"//x",
        b"y",
        b"xy",
        b"./y/x",
        b"",
    ] {
        let hosts = Hosts::new();
        let forged = Forged::default().folder(b"x").file(name, b"harm");
        let error = forged.unpack(&hosts.inside(), b"x").unwrap_err();
        assert!(matches!(error, CopyError::NotAsked(_)), "{name:?}: {error:?}");
        hosts.is_unharmed();
    }
}

#[test]
fn links_of_the_archive_are_made_and_never_followed() {
    for (link, below) in [(&b"x/out"[..], &b"x/out/secret"[..]), (b"x", b"x/secret")] {
        let hosts = Hosts::new();
        let up: &[u8] = if link == b"x" { b".." } else { b"../.." };
        let mut forged = Forged::default();
        if link != b"x" {
            forged = forged.folder(b"x");
        }
        let forged = forged.entry(EntryType::Symlink, link, up, b"").file(below, b"harm");
        assert!(forged.unpack(&hosts.inside(), b"x").is_err());
        hosts.is_unharmed();
    }
    // A file over a link, and a folder over one.
    let hosts = Hosts::new();
    let forged = Forged::default().entry(EntryType::Symlink, b"x", b"../secret", b"").file(b"x", b"new");
    forged.unpack(&hosts.inside(), b"x").unwrap();
    assert_eq!(fs::read_to_string(hosts.inside().join("x")).unwrap(), "new");
    hosts.is_unharmed();
    let hosts = Hosts::new();
    let forged =
        Forged::default().entry(EntryType::Symlink, b"x", b"..", b"").folder(b"x").file(b"x/secret", b"harm");
    assert!(forged.unpack(&hosts.inside(), b"x").is_err());
    hosts.is_unharmed();
}

#[test]
fn hard_links_devices_and_unknown_kinds_give_nothing_away() {
    let hosts = Hosts::new();
    let hard = Forged::default().entry(EntryType::Link, b"x", b"../secret", b"");
    assert!(matches!(hard.unpack(&hosts.inside(), b"x"), Err(CopyError::NotAsked(_))));
    for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo] {
        let left = Forged::default().entry(kind, b"x", b"", b"").unpack(&hosts.inside(), b"x").unwrap();
        assert_eq!(left, ["x"]);
    }
    for kind in [EntryType::XHeader, EntryType::XGlobalHeader, EntryType::GNUSparse, EntryType::new(b'?')] {
        let other = Forged::default().entry(kind, b"x", b"", b"30 path=../secret\n");
        assert!(other.unpack(&hosts.inside(), b"x").is_err(), "{kind:?}");
    }
    assert_eq!(fs::read_dir(hosts.inside()).unwrap().count(), 0);
    hosts.is_unharmed();
}

#[test]
fn names_and_sizes_that_promise_too_much_cost_nothing() {
    let hosts = Hosts::new();
    let long = Forged::default().entry(EntryType::GNULongName, b"././@LongLink", b"", &vec![b'a'; 1 << 20]);
    assert!(matches!(long.unpack(&hosts.inside(), b"x"), Err(CopyError::NotAsked(_))));
    // The archive ends before the file does: what was written of it goes again.
    let mut cut = Forged::default().file(b"x", b"abc");
    let header = Header::from_byte_slice(&cut.0[..512]);
    let mut header = header.clone();
    let mut says = |size: u64| {
        header.set_size(size);
        header.set_cksum();
        cut.0[..512].copy_from_slice(header.as_bytes());
        Forged(cut.0.clone()).unpack(&hosts.inside(), b"x")
    };
    assert!(matches!(says(1 << 20), Err(CopyError::Archive(_))));
    // More than any disk has is refused before anything is written.
    for size in [1 << 60, u64::MAX / 2] {
        let refused = says(size);
        assert!(matches!(refused, Err(CopyError::TooLarge { .. })), "{refused:?}");
    }
    assert_eq!(fs::read_dir(hosts.inside()).unwrap().count(), 0);
    assert!(Forged(vec![0xff; 4096]).unpack(&hosts.inside(), b"x").is_err());
}

#[test]
fn what_was_there_is_replaced_and_never_written_through() {
    let hosts = Hosts::new();
    // A link and a second name of the user's own.
    symlink("../secret", hosts.inside().join("x")).unwrap();
    Forged::default().file(b"x", b"new").unpack(&hosts.inside(), b"x").unwrap();
    fs::remove_file(hosts.inside().join("x")).unwrap();
    fs::hard_link(hosts.root.path().join("secret"), hosts.inside().join("x")).unwrap();
    Forged::default().file(b"x", b"new").unpack(&hosts.inside(), b"x").unwrap();
    assert_eq!(fs::read_to_string(hosts.inside().join("x")).unwrap(), "new");
    hosts.is_unharmed();
    let mode = fs::metadata(hosts.inside().join("x")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755, "no set-id bits");
    // A link where a folder is to be entered.
    symlink("..", hosts.inside().join("y")).unwrap();
    assert!(Forged::default().folder(b"x").file(b"x/secret", b"harm").unpack(&hosts.inside(), b"y").is_err());
    hosts.is_unharmed();
}

#[test]
fn zeros_take_no_room_and_come_back() {
    let hosts = Hosts::new();
    let mut content = vec![0u8; 9 << 20];
    content[5 << 20] = 7;
    content.extend([1; 3]);
    let forged =
        Forged::default().folder(b"x").file(b"x/holes", &content).file(b"x/zeros", &content[..4 << 20]);
    let mut done = Done::default();
    let mut archive = forged.0;
    archive.resize(archive.len() + 1024, 0);
    let folder = fs::File::open(hosts.inside()).unwrap();
    unpack(&archive[..], std::os::fd::AsFd::as_fd(&folder), b"x", b"x", &mut done).unwrap();
    assert_eq!(done.files, 2);
    let at = |name: &str| hosts.inside().join("x").join(name);
    assert!(fs::read(at("holes")).unwrap() == content, "the content");
    assert_eq!(fs::metadata(at("zeros")).unwrap().len(), 4 << 20);
    for (name, most) in [("holes", 512 << 10), ("zeros", 64 << 10)] {
        let taken = fs::metadata(at(name)).unwrap().blocks() * 512;
        assert!(taken <= most, "{name} takes {taken}");
    }
    // What came before an end is counted.
    let cut = archive.len() / 2;
    let mut done = Done::default();
    assert!(
        unpack(&archive[..cut + (4 << 20)], std::os::fd::AsFd::as_fd(&folder), b"x", b"y", &mut done)
            .is_err()
    );
    assert_eq!(done.files, 1);
}

#[test]
fn holes_are_not_sent() {
    use std::io::Read;
    use std::os::unix::fs::FileExt;
    let root = tempfile::tempdir().unwrap();
    let source_of = |name: &str| source(&root.path().join(name), &[]).unwrap();
    let make = |name: &str, size: u64, written: &[u64]| {
        let file = fs::File::create(root.path().join(name)).unwrap();
        file.set_len(size).unwrap();
        written.iter().for_each(|at| file.write_all_at(b"something", *at).unwrap());
    };
    let many: Vec<u64> = (0..60).map(|n| n << 20).collect();
    make("many", 64 << 20, &many);
    make("at-the-end", (10 << 20) + 9, &[10 << 20]);
    make("nothing", 10 << 20, &[]);
    make("empty", 0, &[]);
    make("huge", 10 << 40, &[7 << 40]);
    for name in ["many", "at-the-end", "nothing", "empty"] {
        let mut archive = Vec::new();
        // A name that does not fit into a header, too.
        let called = format!("{name}{}", "x".repeat(150));
        pack(&source_of(name), OsStr::new(&called), &mut archive).unwrap();
        assert!(archive.len() < 2 << 20, "{name}: {} bytes", archive.len());
        let mut sent = tar::Archive::new(&archive[..]);
        let mut entry = sent.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.path_bytes(), called.as_bytes());
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        assert!(content == fs::read(root.path().join(name)).unwrap(), "{name}: the content");
    }
    let mut archive = Vec::new();
    pack(&source_of("huge"), OsStr::new("huge"), &mut archive).unwrap();
    assert!(archive.len() < 1 << 20);
    // As the program that unpacks it has it.
    let mut tar = std::process::Command::new("tar");
    tar.args(["-x", "-C"]).arg(root.path()).args(["--transform", "s/huge/back/"]);
    let mut tar = tar.stdin(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut tar.stdin.take().unwrap(), &archive).unwrap();
    assert!(tar.wait().unwrap().success());
    let back = fs::File::open(root.path().join("back")).unwrap();
    let mut words = [0u8; 9];
    back.read_exact_at(&mut words, 7 << 40).unwrap();
    assert_eq!((&words, back.metadata().unwrap().len()), (b"something", 10 << 40));
}

#[test]
fn what_is_no_file_is_never_replaced() {
    let hosts = Hosts::new();
    let at = |name: &str| hosts.inside().join(name);
    rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RUSR).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    fs::create_dir(at("folder")).unwrap();
    symlink("pipe", at("link")).unwrap();
    symlink("link", at("links")).unwrap();
    symlink("/dev/null", at("null")).unwrap();
    symlink("folder", at("to-folder")).unwrap();
    let before = || {
        let entries = fs::read_dir(hosts.inside()).unwrap().map(|entry| entry.unwrap());
        let mut all: Vec<_> = entries.map(|e| (e.file_name(), e.metadata().unwrap().ino())).collect();
        all.sort();
        all
    };
    let there = before();
    for name in ["pipe", "socket", "folder", "link", "links", "null", "to-folder"] {
        let file = Forged::default().file(b"x", b"new").unpack(&hosts.inside(), name.as_bytes());
        assert!(matches!(file, Err(CopyError::InTheWay { .. })), "{name}: {file:?}");
        if name != "to-folder" {
            let link = Forged::default().entry(EntryType::Symlink, b"x", b"y", b"");
            let link = link.unpack(&hosts.inside(), name.as_bytes());
            assert!(matches!(link, Err(CopyError::InTheWay { .. })), "{name}: {link:?}");
        }
        // Also by a name that the guest chose.
        let within = Forged::default().folder(b"x").file(format!("x/{name}").as_bytes(), b"new");
        assert!(matches!(within.unpack(&hosts.inside(), b"."), Err(CopyError::InTheWay { .. })), "{name}");
    }
    assert_eq!(before(), there, "everything is as it was, and nothing is left");
    // A link that is copied a second time.
    let again = Forged::default().entry(EntryType::Symlink, b"x", b"folder", b"");
    again.unpack(&hosts.inside(), b"to-folder").unwrap();
    hosts.is_unharmed();
}

#[test]
fn a_link_at_the_end_of_the_users_path_leads_to_what_is_written() {
    let root = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(root.path()).unwrap();
    fs::create_dir_all(root.join("shared")).unwrap();
    fs::create_dir(root.join("own")).unwrap();
    fs::write(root.join("own/file"), "").unwrap();
    symlink("own/file", root.join("link")).unwrap();
    symlink("../own/file", root.join("shared/link")).unwrap();
    let shares = [Share { path: root.join("shared"), read_only: false, identity: None }];
    let (folder, name) = target(&root.join("link"), &shares).unwrap();
    assert_eq!(name, "file");
    let inode = |stat: rustix::fs::Stat| stat.st_ino;
    assert_eq!(
        inode(rustix::fs::fstat(&folder).unwrap()),
        fs::metadata(root.join("own")).unwrap().ino(),
        "the file's own folder"
    );
    // One that a guest may have made is not followed.
    assert_eq!(target(&root.join("shared/link"), &shares).unwrap().1, "link");
    assert!(target(Path::new("/"), &[]).is_err());
}

#[test]
fn a_tree_comes_back_as_it_went() {
    let root = tempfile::tempdir().unwrap();
    let tree = root.path().join("tree");
    let deep = tree.join("sub/".to_owned() + &"d".repeat(120));
    fs::create_dir_all(&deep).unwrap();
    let odd = OsStr::from_bytes(b"caf\xe9 x");
    fs::write(tree.join(odd), vec![7u8; 70_000]).unwrap();
    fs::write(deep.join("run"), "#!/bin/sh").unwrap();
    fs::set_permissions(deep.join("run"), fs::Permissions::from_mode(0o6750)).unwrap();
    fs::set_permissions(tree.join("sub"), fs::Permissions::from_mode(0o555)).unwrap();
    symlink("../no/where", tree.join("link")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, tree.join("pipe"), rustix::fs::Mode::RUSR).unwrap();

    let mut archive = Vec::new();
    let found = source(&tree, &[]).unwrap();
    assert!(found.is_folder);
    assert_eq!(pack(&found, OsStr::new("x"), &mut archive).unwrap(), ["x/pipe"]);
    let mut sent = tar::Archive::new(&archive[..]);
    let modes = sent.entries().unwrap().map(|entry| entry.unwrap().header().mode().unwrap());
    assert!(modes.inspect(|mode| assert_eq!(mode & 0o7000, 0, "set-id bits are not sent")).count() > 4);
    let out = root.path().join("out");
    fs::create_dir(&out).unwrap();
    let folder = fs::File::open(&out).unwrap();
    let folder = std::os::fd::AsFd::as_fd(&folder);
    assert!(unpacked(&archive, folder, b"x", b"copy").unwrap().is_empty());
    let copy = out.join("copy");
    assert_eq!(fs::read(copy.join(odd)).unwrap(), vec![7u8; 70_000]);
    assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new("../no/where"));
    assert_eq!(fs::metadata(copy.join("sub")).unwrap().mode() & 0o7777, 0o555);
    let run = copy.join(deep.strip_prefix(&tree).unwrap()).join("run");
    assert_eq!(fs::metadata(&run).unwrap().mode() & 0o7777, 0o750);
    assert_eq!(fs::metadata(run).unwrap().mtime(), fs::metadata(deep.join("run")).unwrap().mtime());

    // What is in it, into a folder that is there.
    let mut archive = Vec::new();
    pack(&found, OsStr::new("."), &mut archive).unwrap();
    unpacked(&archive, folder, b".", b".").unwrap();
    assert_eq!(fs::read(out.join(odd)).unwrap().len(), 70_000);
    for locked in [tree.join("sub"), copy.join("sub"), out.join("sub")] {
        fs::set_permissions(locked, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn links_that_a_guest_may_have_made_are_not_followed() {
    let root = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(root.path()).unwrap();
    let shared = root.join("shared");
    fs::create_dir_all(shared.join("real")).unwrap();
    fs::create_dir_all(root.join("private/keys")).unwrap();
    symlink("../private", shared.join("trap")).unwrap();
    symlink(&shared, root.join("own-link")).unwrap();
    symlink(shared.join("trap/keys"), root.join("deep-link")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    let shares = [Share { path: shared.clone(), read_only: false, identity: None }];
    assert!(open_folder(&shared.join("real"), &shares).is_ok());
    assert!(open_folder(&root.join("own-link/real"), &shares).is_ok(), "the user's own link");
    assert!(open_folder(&shared.join("real/../../private"), &shares).is_ok(), "up and out by name");
    assert!(open_folder(&root.join("deep-link"), &[]).is_ok());
    assert!(open_folder(&root.join("deep-link"), &shares).is_err());
    assert!(open_folder(&root.join("loop"), &shares).is_err());
    for trapped in [shared.join("trap"), shared.join("trap/keys"), root.join("own-link/trap/keys")] {
        assert!(open_folder(&trapped, &shares).is_err(), "{}", trapped.display());
        assert!(open_folder(&trapped, &[]).is_ok());
        assert!(source(&trapped.join("x"), &shares).is_err());
    }
    // The link itself may be copied, as a link.
    assert!(!source(&shared.join("trap"), &shares).unwrap().is_folder);
    assert!(source(Path::new("/"), &[]).is_err());
}

#[test]
fn a_file_that_is_cut_while_it_is_read_does_not_spoil_the_archive() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a"), vec![1u8; 10]).unwrap();
    let mut content = pack::tests_exactly(fs::File::open(root.path().join("a")).unwrap(), 600);
    let mut archive = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(600);
    header.set_mode(0o644);
    archive.append_data(&mut header, "a", &mut content).unwrap();
    let bytes = archive.into_inner().unwrap();
    let mut archive = tar::Archive::new(&bytes[..]);
    let mut entries = archive.entries().unwrap();
    assert_eq!(entries.next().unwrap().unwrap().size(), 600);
    assert!(entries.next().is_none());
}

/// `/proc` and `/sys` say a size that has nothing to do with what is read.
#[test]
fn a_file_that_the_kernel_makes_up_is_copied_with_what_is_read_of_it() {
    for path in ["/proc/self/status", "/sys/kernel/mm/transparent_hugepage/enabled"] {
        let Ok(content) = fs::read(path) else { continue };
        let mut archive = Vec::new();
        let source = source(Path::new(path), &[]).unwrap();
        assert_eq!(pack(&source, "x".as_ref(), &mut archive).unwrap(), [""; 0]);
        let hosts = Hosts::new();
        let folder = fs::File::open(hosts.inside()).unwrap();
        unpacked(&archive, std::os::fd::AsFd::as_fd(&folder), b"x", b"x").unwrap();
        let copy = fs::read_to_string(hosts.inside().join("x")).unwrap();
        // The numbers in it change from one look to the next.
        let first = |text: &str| text.lines().next().unwrap().to_owned();
        assert_eq!(first(&copy), first(&String::from_utf8(content).unwrap()), "{path}");
        assert!(!copy.contains('\0'), "{path}");
    }
    let hosts = Hosts::new();
    let folder = fs::File::open(hosts.inside()).unwrap();
    let archive = pack_content("x".as_ref(), 0o6444, 1_700_000_000, b"made up\n").unwrap();
    unpacked(&archive, std::os::fd::AsFd::as_fd(&folder), b"x", b"called").unwrap();
    let meta = fs::metadata(hosts.inside().join("called")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.len()), (0o444, 1_700_000_000, 8));
}

#[test]
fn a_file_without_an_end_is_not_waited_for() {
    let error = read_untold(std::io::repeat(0), b"endless").unwrap_err();
    assert_eq!(error.to_string(), "endless does not say how large it is, and has more than 64 MiB");
    assert_eq!(read_untold(&b"all"[..], b"x").unwrap(), b"all");
    assert_eq!(source(Path::new("/dev/zero"), &[]).unwrap().special, Some("a device"));
    assert_eq!(source(Path::new("/dev"), &[]).unwrap().special, None);
}
