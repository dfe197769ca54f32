//! What programs rely on: files behave through the wire as they do on the host, and both sides see each other's changes.

mod scene;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use fuse_wire::client::{Client, RawSetAttr};
use fuse_wire::{Errno, NodeId, RequestHandler};
use hostfs::{Options, Share};
use scene::*;

#[test]
fn a_file_is_made_written_and_read_on_both_sides() {
    let scene = Scene::new();
    let client = scene.client();
    let root = share(&client).node;
    let (file, handle) = client.create(root, b"new", 0o640, O_RDWR | O_EXCL).unwrap();
    assert_eq!((file.mode, file.uid, file.gid, file.links, file.size), (0o100640, 1000, 1000, 1, 0));
    assert_eq!(client.create(root, b"new", 0o640, O_RDWR | O_EXCL), Err(Errno::EXIST));
    assert_eq!(client.write(handle, 0, b"hello world", 0).unwrap(), 11);
    assert_eq!(client.write(handle, 6, b"there", 0).unwrap(), 5);
    assert_eq!(scene.text("new"), "hello there");
    assert_eq!(client.read(handle, 6, 100).unwrap(), b"there");
    assert_eq!(client.read(handle, 100, 100).unwrap(), b"");
    client.fsync(handle, 0).unwrap();
    client.fsync(handle, 1).unwrap();
    assert_eq!(client.flush(handle), Err(Errno::NOSYS), "nothing is left to flush at a close");
    client.release(handle).unwrap();
    let host = std::fs::metadata(scene.host("new")).unwrap();
    assert_eq!(host.uid(), rustix::process::geteuid().as_raw());
    assert_eq!(host.mode(), 0o100640);

    scene.put("new", "changed on the host");
    let again = client.lookup(root, b"new").unwrap();
    assert_eq!((again.node, again.size), (file.node, 19));
    let handle = client.open(again.node, O_RDONLY).unwrap();
    assert_eq!(client.read(handle, 0, 100).unwrap(), b"changed on the host");
}

#[test]
fn large_transfers_cross_all_buffers() {
    let scene = Scene::new();
    let client = scene.client();
    let data: Vec<u8> = (0..1_048_576u32).map(|n| (n * 7 + n / 251) as u8).collect();
    let (_, handle) = client.create(share(&client).node, b"big", 0o644, O_RDWR).unwrap();
    assert_eq!(client.write(handle, 3, &data, 0).unwrap(), 1 << 20);
    assert_eq!(client.read(handle, 3, 1 << 20).unwrap(), data);
    assert_eq!(client.read(handle, 3, u32::MAX).unwrap(), data);
    assert_eq!(client.read(handle, 0, 4).unwrap(), [0, 0, 0, data[0]]);
    assert_eq!(client.write(handle, 0, &vec![0; (1 << 20) + 1], 0), Err(Errno::INVAL));
    assert_eq!(client.write(handle, u64::MAX, b"x", 0), Err(Errno::INVAL));
    assert_eq!(client.read(handle, i64::MAX as u64, 2), Err(Errno::INVAL));
    assert_eq!(std::fs::metadata(scene.host("big")).unwrap().len(), (1 << 20) + 3);
}

#[test]
fn appending_goes_to_the_end_wherever_that_is_by_now() {
    let scene = Scene::new();
    scene.put("log", "one\n");
    let client = scene.client();
    let file = client.lookup(share(&client).node, b"log").unwrap().node;
    let handle = client.open(file, O_WRONLY | O_APPEND).unwrap();
    client.write(handle, 4, b"two\n", O_WRONLY | O_APPEND).unwrap();
    let mut host = std::fs::OpenOptions::new().append(true).open(scene.host("log")).unwrap();
    host.write_all(b"from the host\n").unwrap();
    // The guest does not know of the host's line, and gives the old end.
    client.write(handle, 8, b"three\n", O_WRONLY | O_APPEND).unwrap();
    assert_eq!(scene.text("log"), "one\ntwo\nfrom the host\nthree\n");
    // Cleared with fcntl: then offsets count.
    client.write(handle, 0, b"ONE", O_WRONLY).unwrap();
    assert_eq!(scene.text("log"), "ONE\ntwo\nfrom the host\nthree\n");
}

#[test]
fn truncation_at_open_and_later() {
    let scene = Scene::new();
    scene.put("file", "0123456789");
    let client = scene.client();
    let file = client.lookup(share(&client).node, b"file").unwrap().node;
    let handle = client.open(file, O_RDWR).unwrap();
    assert_eq!(client.truncate(file, Some(handle), 4).unwrap().size, 4);
    assert_eq!(client.truncate(file, None, 6).unwrap().size, 6);
    assert_eq!(client.read(handle, 0, 10).unwrap(), b"0123\0\0");
    client.open(file, O_WRONLY | O_TRUNC).unwrap();
    assert_eq!(client.getattr(file, None).unwrap().size, 0);
    scene.put("file", "again");
    client.open(file, O_RDONLY | O_TRUNC).unwrap();
    assert_eq!(scene.text("file"), "");
    assert_eq!(client.truncate(file, None, u64::MAX), Err(Errno::FBIG));
}

#[test]
fn a_removed_file_lives_as_long_as_it_is_open() {
    let scene = Scene::new();
    scene.put("file", "content");
    let client = scene.client();
    let root = share(&client).node;
    let file = client.lookup(root, b"file").unwrap().node;
    let handle = client.open(file, O_RDWR).unwrap();
    client.unlink(root, b"file").unwrap();
    assert!(!scene.host("file").exists());
    assert_eq!(client.lookup(root, b"file"), Err(Errno::NOENT));
    assert_eq!(client.read(handle, 0, 100).unwrap(), b"content");
    client.write(handle, 7, b" more", 0).unwrap();
    let seen = client.getattr(file, None).unwrap();
    assert_eq!((seen.links, seen.size), (0, 12));
    assert_eq!(client.chmod(file, 0o600).unwrap().mode, 0o100600);
    assert_eq!(client.chown(file, 3, 4).unwrap().uid, 3);
    assert_eq!(client.truncate(file, None, 2).unwrap().size, 2);
    let set = RawSetAttr { valid: 1 << 5, mtime: 99, ..RawSetAttr::default() };
    assert_eq!(client.setattr(file, set).unwrap().mtime, 99);
    // As programs do through /proc/self/fd in the guest.
    let second = client.open(file, O_RDONLY).unwrap();
    assert_eq!(client.read(second, 0, 100).unwrap(), b"co");
    // Its name is free, and means another file when it is taken.
    let (other, _) = client.create(root, b"file", 0o644, O_RDWR).unwrap();
    assert_ne!(other.node, file);
    assert_eq!(client.getattr(file, None).unwrap().size, 2);
    client.release(handle).unwrap();
    client.release(second).unwrap();
    // Without any handle it is still reachable while the guest holds the node.
    assert_eq!(client.getattr(file, None).unwrap().links, 0);
}

#[test]
fn a_file_removed_on_the_host_lives_as_long_as_it_is_open() {
    let scene = Scene::new();
    scene.put("file", "content");
    let client = scene.client();
    let file = client.lookup(share(&client).node, b"file").unwrap().node;
    let handle = client.open(file, O_RDONLY).unwrap();
    // As editors save: a new file renamed over the old one.
    scene.put("file.tmp", "saved");
    std::fs::rename(scene.host("file.tmp"), scene.host("file")).unwrap();
    assert_eq!(client.read(handle, 0, 100).unwrap(), b"content");
    assert_eq!(client.getattr(file, None).unwrap().links, 0);
    let saved = client.lookup(share(&client).node, b"file").unwrap();
    assert_ne!(saved.node, file);
    let handle2 = client.open(saved.node, O_RDONLY).unwrap();
    assert_eq!(client.read(handle2, 0, 100).unwrap(), b"saved");
    client.release(handle).unwrap();
    assert_eq!(client.getattr(file, None), Err(Errno::STALE));
}

#[test]
fn renames_move_replace_refuse_and_swap() {
    let scene = Scene::new();
    for name in ["a", "b"] {
        scene.put(name, name);
    }
    std::fs::create_dir_all(scene.host("dir/sub")).unwrap();
    scene.put("dir/sub/deep", "deep");
    let client = scene.client();
    let root = share(&client).node;
    let [a, b, dir] = ["a", "b", "dir"].map(|name| client.lookup(root, name.as_bytes()).unwrap().node);
    let sub = client.lookup(dir, b"sub").unwrap().node;
    let deep = client.lookup(sub, b"deep").unwrap().node;
    let open_b = client.open(b, O_RDONLY).unwrap();

    assert_eq!(client.rename(root, b"a", root, b"b", 1), Err(Errno::EXIST));
    client.rename(root, b"a", root, b"b", 2).unwrap();
    assert_eq!((scene.text("a"), scene.text("b")), ("b".into(), "a".into()));
    assert_eq!(client.lookup(root, b"b").unwrap().node, a);
    client.open(a, O_RDONLY).unwrap();
    client.rename(root, b"b", root, b"a", 0).unwrap();
    assert_eq!(client.read(open_b, 0, 10).unwrap(), b"b", "replaced while open");
    assert_eq!(client.getattr(b, None).unwrap().links, 0);
    assert_eq!(client.lookup(root, b"a").unwrap().node, a);

    // What is below a moved directory stays reachable by its nodes.
    client.mkdir(root, b"new", 0o755).unwrap();
    let new = client.lookup(root, b"new").unwrap().node;
    client.rename(root, b"dir", new, b"moved", 0).unwrap();
    let handle = client.open(deep, O_RDONLY).unwrap();
    assert_eq!(client.read(handle, 0, 10).unwrap(), b"deep");
    assert_eq!(client.walk(root, &["new", "moved", "sub", "deep"]).unwrap().node, deep);
    assert_eq!(client.rename(root, b"new", sub, b"loop", 0), Err(Errno::INVAL));
    assert_eq!(client.rename(root, b"none", root, b"x", 0), Err(Errno::NOENT));
    assert_eq!(client.rename(root, b"a", root, b"x", 4), Err(Errno::INVAL), "no whiteouts");
}

#[test]
fn directories_moved_on_the_host_are_found_again_without_loops() {
    let scene = Scene::with(Options { max_directories: 0, ..Options::default() });
    std::fs::create_dir_all(scene.host("a/b")).unwrap();
    let client = scene.client();
    let root = share(&client).node;
    let a = client.lookup(root, b"a").unwrap().node;
    let b = client.lookup(a, b"b").unwrap().node;
    std::fs::rename(scene.host("a/b"), scene.host("b")).unwrap();
    std::fs::rename(scene.host("a"), scene.host("b/a")).unwrap();
    // Now b is above a; what is remembered says the opposite.
    assert_eq!(client.lookup(b, b"a"), Err(Errno::STALE));
    assert_eq!(client.lookup(root, b"b").unwrap().node, b);
    assert_eq!(client.lookup(b, b"a").unwrap().node, a);
    client.mkdir(a, b"c", 0o755).unwrap();
    assert!(scene.host("b/a/c").is_dir());
}

#[test]
fn hard_links_are_one_file() {
    let scene = Scene::new();
    scene.put("one", "x");
    let client = scene.client();
    let root = share(&client).node;
    let one = client.lookup(root, b"one").unwrap();
    let two = client.link(one.node, root, b"two").unwrap();
    assert_eq!((two.node, two.inode, two.links), (one.node, one.inode, 2));
    assert_eq!(client.link(one.node, root, b"two"), Err(Errno::EXIST));
    client.rename(root, b"one", root, b"two", 0).unwrap();
    assert_eq!(client.lookup(root, b"one").unwrap().links, 2, "one over the other does nothing");
    client.unlink(root, b"two").unwrap();
    assert_eq!(client.getattr(one.node, None).unwrap().links, 1);
    assert_eq!(client.link(root, root, b"x"), Err(Errno::PERM));
    let link = client.symlink(root, b"sym", b"one").unwrap();
    client.link(link.node, root, b"sym2").unwrap();
    assert_eq!(std::fs::read_link(scene.host("sym2")).unwrap().as_os_str(), "one");
}

#[test]
fn names_are_bytes() {
    let scene = Scene::new();
    let client = scene.client();
    let root = share(&client).node;
    let names =
        [&b"\xff\xfe"[..], b"with space", b"new\nline", b"\xe2\x98\x83", b"back\\slash", &[b'n'; 255]];
    for name in names {
        client.create(root, name, 0o644, O_RDWR).unwrap();
        assert!(scene.host("").join(OsStr::from_bytes(name)).exists());
        client.symlink(root, &[b"l", &name[..name.len().min(200)]].concat(), name).unwrap();
    }
    let listed: BTreeSet<Vec<u8>> =
        client.list(root, 300).unwrap().into_iter().map(|entry| entry.name).collect();
    for name in names {
        assert!(listed.contains(name));
    }
    let link = client.lookup(root, b"l\xff\xfe").unwrap().node;
    assert_eq!(client.readlink(link).unwrap(), b"\xff\xfe");
    assert_eq!(client.symlink(root, b"empty", b""), Err(Errno::NOENT));
    assert_eq!(client.symlink(root, b"long", &[b'x'; 4096]), Err(Errno::NAMETOOLONG));
    client.symlink(root, b"longest", &[b'x'; 4000]).unwrap();
    assert_eq!(client.readlink(client.lookup(root, b"longest").unwrap().node).unwrap().len(), 4000);
}

#[test]
fn holes_stay_holes() {
    let scene = Scene::new();
    let client = scene.client();
    let (_, handle) = client.create(share(&client).node, b"sparse", 0o644, O_RDWR).unwrap();
    client.write(handle, 1 << 30, b"end", 0).unwrap();
    client.write(handle, 1 << 20, &[7; 8192], 0).unwrap();
    assert!(std::fs::metadata(scene.host("sparse")).unwrap().blocks() < 200);
    assert_eq!(client.lseek(handle, 0, 3).unwrap(), 1 << 20);
    assert_eq!(client.lseek(handle, 1 << 20, 4).unwrap(), (1 << 20) + 8192);
    assert_eq!(client.lseek(handle, 1 << 40, 3), Err(Errno::NXIO));
    client.fallocate(handle, 1 << 20, 4096, 3).unwrap();
    assert_eq!(client.lseek(handle, 0, 3).unwrap(), (1 << 20) + 4096);
    client.fallocate(handle, (1 << 20) + 4096, 4096, 0x11).unwrap();
    assert_eq!(client.read(handle, (1 << 20) + 4096, 4).unwrap(), [0; 4]);
    client.fallocate(handle, 2 << 30, 4096, 0).unwrap();
    assert_eq!(std::fs::metadata(scene.host("sparse")).unwrap().len(), (2 << 30) + 4096);
    assert_eq!(client.fallocate(handle, 0, 4096, 8), Err(Errno::NOTSUP), "collapsing a range");
    assert_eq!(client.fallocate(handle, 0, 0, 0), Err(Errno::INVAL));
    let mut file = std::fs::File::open(scene.host("sparse")).unwrap();
    file.seek(SeekFrom::Start(1 << 30)).unwrap();
    assert_eq!(client.copy_file_range((handle, 1 << 30), (handle, 0), 3).unwrap(), 3);
    assert_eq!(client.read(handle, 0, 3).unwrap(), b"end");
}

#[test]
fn listing_goes_on_where_it_was_while_entries_come_and_go() {
    let scene = Scene::new();
    for n in 0..500 {
        scene.put(&format!("file-{n:04}"), "");
    }
    let client = scene.client();
    let root = share(&client).node;
    let handle = client.opendir(root).unwrap();
    let mut seen: Vec<Vec<u8>> = Vec::new();
    let (mut offset, mut round) = (0, 0);
    loop {
        let part = client.readdir(handle, offset, 1024, false).unwrap();
        let Some(last) = part.last() else { break };
        offset = last.next;
        // As `rm -r` does: what was listed is removed while the listing goes on; and something new appears.
        for entry in part.iter().filter(|entry| entry.name.starts_with(b"file-")) {
            client.unlink(root, &entry.name).unwrap();
        }
        scene.put(&format!("new-{round}"), "");
        seen.extend(part.into_iter().map(|entry| entry.name).filter(|name| name.starts_with(b"file-")));
        round += 1;
    }
    assert!(round > 10);
    let unique: BTreeSet<&Vec<u8>> = seen.iter().collect();
    assert_eq!((seen.len(), unique.len()), (500, 500), "each once");
    // Rewinding shows what is there now; an old place can be sought.
    let first = client.readdir(handle, 0, 1024, false).unwrap();
    assert!(first.iter().all(|entry| !entry.name.starts_with(b"file-")));
    let from_third = client.readdir(handle, first[1].next, 1024, false).unwrap();
    assert_eq!(from_third[0].name, first[2].name);
    assert_eq!(client.readdir(handle, 0, 24, false), Err(Errno::INVAL), "room for no entry");
    for entry in client.list(root, 4096).unwrap() {
        match &entry.name[..] {
            b".." => assert_eq!(entry.inode, 1),
            b"." => assert_eq!(entry.inode, share(&client).inode),
            name => {
                let found = client.lookup(root, name).unwrap();
                assert_eq!((entry.inode, entry.kind), (found.inode, found.mode >> 12));
            }
        }
    }
}

#[test]
fn listing_with_nodes_counts_their_lookups() {
    let scene = Scene::with(Options { name_valid: std::time::Duration::from_secs(1), ..Options::default() });
    for n in 0..50 {
        scene.put(&format!("{n}"), "x");
    }
    let client = scene.client();
    assert_ne!(client.accepted.get() & 1 << 13, 0, "READDIRPLUS is offered where names hold for a while");
    let root = share(&client).node;
    let handle = client.opendir(root).unwrap();
    let mut nodes = Vec::new();
    let mut offset = 0;
    loop {
        let part = client.readdir(handle, offset, 2000, true).unwrap();
        let Some(last) = part.last() else { break };
        offset = last.next;
        nodes.extend(part.iter().filter_map(|entry| entry.entry));
    }
    assert_eq!(nodes.len(), 50);
    client.releasedir(handle).unwrap();
    let held = scene.server.file_system().load().0;
    for node in nodes {
        assert_eq!(client.getattr(node.node, None).unwrap().size, 1);
        client.forget(node.node, 1);
    }
    assert_eq!(scene.server.file_system().load().0, held - 50, "one lookup each, no more");
}

#[test]
fn twenty_thousand_files_need_few_descriptors() {
    let scene = Scene::with(Options { max_directories: 16, ..Options::default() });
    for dir in 0..200 {
        std::fs::create_dir(scene.host(&format!("d{dir}"))).unwrap();
        for file in 0..100 {
            scene.put(&format!("d{dir}/f{file}"), "");
        }
    }
    let before = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let client = scene.client();
    let root = share(&client).node;
    let mut files = Vec::new();
    for dir in client.list(root, 4096).unwrap().iter().filter(|entry| entry.name[0] != b'.') {
        let node = client.lookup(root, &dir.name).unwrap().node;
        for file in client.list(node, 4096).unwrap().iter().filter(|entry| entry.name[0] != b'.') {
            files.push(client.lookup(node, &file.name).unwrap());
        }
    }
    assert_eq!(files.len(), 20_000);
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    // Other tests of this process open some of their own meanwhile.
    assert!(descriptors < before + 200, "{descriptors} open, {before} before");
    for file in files.iter().step_by(97) {
        let handle = client.open(file.node, O_RDWR).unwrap();
        client.write(handle, 0, b"touched", 0).unwrap();
        client.release(handle).unwrap();
        assert_eq!(client.getattr(file.node, None).unwrap().size, 7);
    }
    for dir in 0..200 {
        let name = format!("d{dir}");
        let node = client.lookup(root, name.as_bytes()).unwrap().node;
        for file in 0..100 {
            client.unlink(node, format!("f{file}").as_bytes()).unwrap();
        }
        client.rmdir(root, name.as_bytes()).unwrap();
    }
    assert_eq!(std::fs::read_dir(scene.host("")).unwrap().count(), 0);
}

#[test]
fn owners_and_modes_are_the_guests_files_the_callers() {
    let scene = Scene::new();
    scene.put("plain", "");
    std::fs::set_permissions(scene.host("plain"), PermissionsExt::from_mode(0o664)).unwrap();
    let client = scene.client();
    let root = share(&client).node;
    let plain = client.lookup(root, b"plain").unwrap();
    assert_eq!((plain.uid, plain.gid, plain.mode), (1000, 1000, 0o100664));
    client.uid.set(0);
    client.gid.set(0);
    let (by_root, _) = client.create(root, b"by-root", 0o600, O_RDWR).unwrap();
    assert_eq!((by_root.uid, by_root.gid), (0, 0));
    let dir = client.mkdir(root, b"dir-by-root", 0o700).unwrap();
    assert_eq!((dir.uid, dir.mode), (0, 0o40700));
    let link = client.symlink(root, b"link-by-root", b"t").unwrap();
    assert_eq!((link.uid, link.mode), (0, 0o120777));
    assert_eq!(client.chown(plain.node, 33, 44).unwrap().gid, 44);
    for (mode, host) in [(0o444, 0o444), (0o000, 0o400), (0o222, 0o622), (0o755, 0o755)] {
        assert_eq!(client.chmod(plain.node, mode).unwrap().mode, 0o100000 | mode, "{mode:o}");
        assert_eq!(std::fs::metadata(scene.host("plain")).unwrap().mode() & 0o7777, host, "{mode:o}");
        assert_eq!(client.getattr(plain.node, None).unwrap().uid, 33);
    }
    client.chmod(plain.node, 0).unwrap();
    let me = rustix::process::geteuid().as_raw();
    for name in ["plain", "by-root", "dir-by-root", "link-by-root"] {
        assert_eq!(std::fs::symlink_metadata(scene.host(name)).unwrap().uid(), me, "{name}");
    }

    // A new session, as after a restart: all but the link's owner is kept with the files.
    let client = scene.client();
    let root = share(&client).node;
    let seen = |name: &str| {
        let seen = client.lookup(root, name.as_bytes()).unwrap();
        (seen.uid, seen.gid, seen.mode & 0o7777)
    };
    assert_eq!(seen("plain"), (33, 44, 0));
    assert_eq!(seen("by-root"), (0, 0, 0o600));
    assert_eq!(seen("dir-by-root"), (0, 0, 0o700));
    assert_eq!(seen("link-by-root"), (1000, 1000, 0o777));
    // The host's chmod wins over what the guest set before.
    std::fs::set_permissions(scene.host("plain"), PermissionsExt::from_mode(0o640)).unwrap();
    assert_eq!(seen("plain"), (33, 44, 0o640));
    // Given back to the sandbox's user, nothing remains on the file.
    client.chown(client.lookup(root, b"plain").unwrap().node, 1000, 1000).unwrap();
    let file = std::fs::File::open(scene.host("plain")).unwrap();
    assert!(rustix::fs::fgetxattr(&file, c"user.vivarium.owner", &mut [0u8; 32]).is_err());
}

#[test]
fn a_folder_that_hands_its_group_down_goes_on_doing_so() {
    let scene = Scene::new();
    std::fs::create_dir(scene.host("team")).unwrap();
    std::fs::set_permissions(scene.host("team"), PermissionsExt::from_mode(0o2775)).unwrap();
    let client = scene.client();
    let team = client.lookup(share(&client).node, b"team").unwrap();
    assert_eq!(team.mode, 0o40775, "the guest is not shown it");
    let sub = client.mkdir(team.node, b"sub", 0o777).unwrap();
    client.create(team.node, b"file", 0o666, O_RDWR).unwrap();
    client.chmod(team.node, 0o755).unwrap();
    client.chmod(sub.node, 0o700).unwrap();
    let mode = |path: &str| std::fs::metadata(scene.host(path)).unwrap().mode() & 0o7777;
    assert_eq!((mode("team"), mode("team/sub"), mode("team/file")), (0o2755, 0o2700, 0o666));
}

#[test]
fn cached_pages_are_kept_only_while_the_file_is_what_it_was() {
    const KEEP_CACHE: u32 = 2;
    let scene = Scene::new();
    scene.put("file", "old");
    // Long unchanged.
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(10);
    std::fs::File::open(scene.host("file")).unwrap().set_modified(old).unwrap();
    let client = scene.client();
    let file = client.lookup(share(&client).node, b"file").unwrap().node;
    let open = || {
        client.release(client.open(file, O_RDONLY).unwrap()).unwrap();
        client.open_flags.get() & KEEP_CACHE != 0
    };
    assert!(!open(), "never seen before");
    // The change time cannot be set back: the file counts as settled only some time after it.
    while !open() {
        std::thread::yield_now();
    }
    scene.put("file", "new");
    assert!(!open(), "changed on the host");
    assert!(!client.accepted.get() & (1 << 16) != 0, "no write-back cache");
}

#[test]
fn locks_stay_in_the_guest_and_unknown_operations_say_so() {
    let scene = Scene::new();
    let client = scene.client();
    let accepted = client.accepted.get();
    for (bit, what) in
        [(1, "POSIX locks"), (10, "flock"), (4, "export"), (16, "write-back"), (20, "ACLs"), (33, "DAX")]
    {
        assert_eq!(accepted & 1 << bit, 0, "{what}");
    }
    for (bit, what) in [(3, "atomic O_TRUNC"), (12, "invalidation"), (22, "large requests"), (28, "killpriv")]
    {
        assert_ne!(accepted & 1 << bit, 0, "{what}");
    }
    let root = share(&client).node;
    for opcode in [31, 32, 33, 37, 40, 41, 48, 49, 51, 52, 0, 4096, u32::MAX] {
        assert_eq!(client.call(opcode, root, &[0; 64], 256), Err(Errno::NOSYS), "{opcode}");
    }
    assert_eq!(client.call(39, root, &[0; 32], 256), Err(Errno::NOTTY), "ioctl");
    assert_eq!(client.call(50, root, &[0; 8], 0), Ok(vec![]), "syncfs");
    let (blocks, free, name_max) = client.statfs(root).unwrap();
    assert!(blocks > 0 && free <= blocks && name_max == 255);
    client.statfs(ROOT).unwrap();
}

#[test]
fn the_host_is_synced_for_changes_of_this_session_and_for_nothing_else() {
    // In memory where there is such a place: the test is not to wait for the host's disk, nor others for the test.
    let dir = tempfile::TempDir::new_in("/dev/shm").or_else(|_| tempfile::TempDir::new()).unwrap();
    std::fs::write(dir.path().join("file"), "x").unwrap();
    let options = Options { sync_pause: Duration::ZERO, ..Options::default() };
    let scene = Scene::serving(options, |_| vec![Share::open(dir.path(), false).unwrap()]);
    let client = scene.client();
    let root = share(&client).node;
    let syncs = || {
        client.call(50, ROOT, &[0; 8], 0).unwrap();
        scene.server.file_system().syncs()
    };
    let file = client.lookup(root, b"file").unwrap().node;
    let (reader, writer) = (client.open(file, O_RDONLY).unwrap(), client.open(file, O_RDWR).unwrap());
    client.read(reader, 0, 9).unwrap();
    client.list(root, 4096).unwrap();
    client.fsync(writer, 0).unwrap();
    assert_eq!(syncs(), 0, "it only looked");
    let changes: [(&str, &dyn Fn() -> bool); 16] = [
        ("write", &|| client.write(writer, 0, b"new", 0).is_ok()),
        ("truncate", &|| client.truncate(file, None, 1).is_ok()),
        ("open to truncate", &|| client.open(file, O_RDWR | O_TRUNC).is_ok()),
        ("chmod", &|| client.chmod(file, 0o600).is_ok()),
        ("create", &|| client.create(root, b"made", 0o644, O_RDWR).is_ok()),
        ("mknod", &|| client.mknod(root, b"node", 0o100_644).is_ok()),
        ("symlink", &|| client.symlink(root, b"link", b"file").is_ok()),
        ("mkdir", &|| client.mkdir(root, b"dir", 0o755).is_ok()),
        ("link", &|| client.link(file, root, b"again").is_ok()),
        ("rename", &|| client.rename(root, b"again", root, b"moved", 0).is_ok()),
        ("unlink", &|| client.unlink(root, b"moved").is_ok()),
        ("rmdir", &|| client.rmdir(root, b"dir").is_ok()),
        // Not every file system can do these; what failed may have been done in part.
        ("allocate", &|| matches!(client.fallocate(writer, 0, 4096, 0), Ok(_) | Err(_))),
        ("copy", &|| matches!(client.copy_file_range((reader, 0), (writer, 8192), 1), Ok(_) | Err(_))),
        ("attribute", &|| matches!(client.setxattr(file, b"user.a", b"b", 0), Ok(_) | Err(_))),
        ("no attribute", &|| matches!(client.removexattr(file, b"user.a"), Ok(_) | Err(_))),
    ];
    let mut expected = 0;
    for (what, change) in changes {
        assert!(change(), "{what}");
        expected += 1;
        assert_eq!(syncs(), expected, "{what}");
        assert_eq!(syncs(), expected, "nothing since {what}");
    }
}

#[test]
fn a_session_starts_with_init_and_ends_with_its_handles() {
    let scene = Scene::new();
    scene.put("file", "x");
    let early = Client::new(&scene.server);
    assert_eq!(early.lookup(ROOT, b"0"), Err(Errno::IO));
    assert_eq!(early.init(30), Err(Errno::PROTO));
    assert_eq!(early.init(31).unwrap(), 31);
    assert_eq!(early.init(99).unwrap(), 40);
    let root = share(&early).node;
    let file = early.lookup(root, b"file").unwrap().node;
    let handle = early.open(file, O_RDONLY).unwrap();
    // The guest's kernel starts anew (kexec, or the driver bound again).
    let client = scene.client();
    assert_eq!(client.read(handle, 0, 1), Err(Errno::BADF));
    assert_eq!(client.getattr(file, None), Err(Errno::STALE));
    assert_eq!(share(&client).node, root);
    assert_ne!(client.lookup(root, b"file").unwrap().node, file, "numbers are not used again");
    scene.server.reset();
    assert_eq!(client.lookup(ROOT, b"0"), Err(Errno::IO));
    assert_eq!(scene.server.file_system().load(), (1, 0));
}

#[test]
fn a_single_file_is_shared_by_its_descriptor() {
    let scene = Scene::serving(Options::default(), |dir| {
        std::fs::write(dir.join("one"), "read me").unwrap();
        std::fs::write(dir.join("two"), "change me").unwrap();
        vec![Share::open(&dir.join("one"), true).unwrap(), Share::open(&dir.join("two"), false).unwrap()]
    });
    let client = scene.client();
    let (one, two) = (client.lookup(ROOT, b"0").unwrap(), client.lookup(ROOT, b"1").unwrap());
    assert_eq!((one.mode & 0o170000, one.size), (0o100000, 7));
    let handle = client.open(one.node, O_RDONLY).unwrap();
    assert_eq!(client.read(handle, 0, 99).unwrap(), b"read me");
    assert_eq!(client.open(one.node, O_RDWR), Err(Errno::ROFS));
    assert_eq!(client.lookup(one.node, b"x"), Err(Errno::NOTDIR));
    assert_eq!(client.opendir(one.node), Err(Errno::NOTDIR));
    let handle = client.open(two.node, O_RDWR | O_TRUNC).unwrap();
    client.write(handle, 0, b"done", 0).unwrap();
    client.chown(two.node, 0, 0).unwrap();
    assert_eq!(client.lookup(ROOT, b"1").unwrap().uid, 0);
    let set = RawSetAttr { valid: 1 << 5, mtime: 1234, ..RawSetAttr::default() };
    assert_eq!(client.setattr(two.node, set).unwrap().mtime, 1234);
    assert_eq!(std::fs::read(scene.dir.path().join("two")).unwrap(), b"done");
    let kinds: Vec<u32> = client.list(ROOT, 4096).unwrap().iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [4, 4, 8, 8]);
}

#[test]
fn what_cannot_be_shared_is_refused() {
    assert!(Share::open("/dev/null".as_ref(), true).is_err());
    assert!(Share::open("/nonexistent".as_ref(), true).is_err());
    let (read, _write) = rustix::pipe::pipe().unwrap();
    assert!(Share::new(read, false).is_err());
}

#[test]
fn many_threads_at_once() {
    let scene = Scene::with(Options { max_directories: 4, ..Options::default() });
    let client = scene.client();
    let root = share(&client).node;
    std::thread::scope(|threads| {
        for thread in 0..6u32 {
            let server = &scene.server;
            threads.spawn(move || {
                let client = Client::new(server);
                let mine = client.mkdir(root, format!("t{thread}").as_bytes(), 0o755).unwrap().node;
                for round in 0..100u32 {
                    let name = format!("f{}", round % 7);
                    let (file, handle) = client.create(mine, name.as_bytes(), 0o644, O_RDWR).unwrap();
                    client.write(handle, 0, &round.to_le_bytes(), 0).unwrap();
                    assert_eq!(client.read(handle, 0, 4).unwrap(), round.to_le_bytes());
                    client.release(handle).unwrap();
                    // All fight for one name.
                    match client.rename(mine, name.as_bytes(), root, b"shared", 0) {
                        Ok(()) => {}
                        Err(errno) => panic!("{errno:?}"),
                    }
                    match client.lookup(root, b"shared") {
                        Ok(seen) => {
                            match client.open(seen.node, O_RDONLY) {
                                Ok(handle) => client.release(handle).unwrap(),
                                Err(errno) => assert_eq!(errno, Errno::STALE),
                            }
                            client.forget(seen.node, 1);
                        }
                        Err(errno) => assert_eq!(errno, Errno::NOENT),
                    }
                    client.forget(file.node, 1);
                    client.list(root, 512).unwrap();
                }
            });
        }
    });
    assert_eq!(std::fs::read_dir(scene.host("")).unwrap().count(), 7);
    assert!(client.forget(NodeId(3), 0));
}

#[test]
fn all_of_this_as_an_ordinary_user() {
    run_all_as_ordinary_user("all_of_this_as_an_ordinary_user");
}
