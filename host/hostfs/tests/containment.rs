//! A guest that wants out, or wants to write where it may only read: every way must fail, and leave the host as it was.

mod scene;

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use fuse_wire::client::RawSetAttr;
use fuse_wire::{Errno, Handle, NodeId};
use hostfs::{Options, Share};
use scene::*;

#[test]
fn names_that_are_no_single_component_are_refused_by_every_operation() {
    let scene = Scene::new();
    scene.put("file", "x");
    let client = scene.client();
    let root = share(&client).node;
    let file = client.lookup(root, b"file").unwrap().node;
    for bad in [
        &b".."[..],
        b".",
        b"",
        b"/",
        b"../outside",
        b"/etc",
        b"a/b",
        b"file/",
        b"./file",
        b"../outside/secret",
    ] {
        let what = String::from_utf8_lossy(bad);
        assert_eq!(client.lookup(root, bad), Err(Errno::INVAL), "{what}");
        assert_eq!(client.mkdir(root, bad, 0o755), Err(Errno::INVAL), "{what}");
        assert_eq!(client.mknod(root, bad, 0o100644), Err(Errno::INVAL), "{what}");
        assert_eq!(client.create(root, bad, 0o644, O_RDWR), Err(Errno::INVAL), "{what}");
        assert_eq!(client.unlink(root, bad), Err(Errno::INVAL), "{what}");
        assert_eq!(client.rmdir(root, bad), Err(Errno::INVAL), "{what}");
        assert_eq!(client.symlink(root, bad, b"t"), Err(Errno::INVAL), "{what}");
        assert_eq!(client.link(file, root, bad), Err(Errno::INVAL), "{what}");
        assert_eq!(client.rename(root, b"file", root, bad, 0), Err(Errno::INVAL), "{what}");
        assert_eq!(client.rename(root, bad, root, b"new", 0), Err(Errno::INVAL), "{what}");
    }
    assert_eq!(client.lookup(root, &[b'a'; 256]), Err(Errno::NAMETOOLONG));
    assert_eq!(scene.text("file"), "x");
    assert_eq!(std::fs::read_dir(scene.host("")).unwrap().count(), 1);
}

#[test]
fn symlinks_are_data_and_lead_nowhere_on_the_host() {
    let scene = Scene::new();
    symlink(scene.outside("secret"), scene.host("to-file")).unwrap();
    symlink(scene.outside(""), scene.host("to-dir")).unwrap();
    symlink("..", scene.host("up")).unwrap();
    symlink("/proc/self/root", scene.host("magic")).unwrap();
    let client = scene.client();
    let root = share(&client).node;
    for name in [&b"to-file"[..], b"to-dir", b"up", b"magic"] {
        let link = client.lookup(root, name).unwrap();
        assert_eq!(link.mode & 0o170000, 0o120000);
        assert_eq!(client.open(link.node, O_RDONLY), Err(Errno::PERM));
        assert_eq!(client.open(link.node, O_RDWR | O_TRUNC), Err(Errno::PERM));
        assert_eq!(client.opendir(link.node), Err(Errno::NOTDIR));
        assert_eq!(client.lookup(link.node, b"secret"), Err(Errno::NOTDIR));
        assert_eq!(client.create(link.node, b"new", 0o644, O_RDWR), Err(Errno::NOTDIR));
        assert_eq!(client.mkdir(link.node, b"new", 0o755), Err(Errno::NOTDIR));
        assert_eq!(client.truncate(link.node, None, 0), Err(Errno::PERM));
        assert_eq!(client.chmod(link.node, 0o777), Err(Errno::NOTSUP));
        assert!(client.setxattr(link.node, b"user.x", b"1", 0).is_err());
        // Creating where a link is does not go through it.
        assert!(client.create(root, name, 0o644, O_RDWR).is_err());
        // Times and owner are the link's own.
        let set = RawSetAttr { valid: 1 << 5, mtime: 77, ..RawSetAttr::default() };
        assert_eq!(client.setattr(link.node, set).unwrap().mtime, 77);
        client.chown(link.node, 0, 0).unwrap();
    }
    let target = client.readlink(client.lookup(root, b"to-file").unwrap().node).unwrap();
    assert_eq!(target, scene.outside("secret").as_os_str().as_bytes());
    let secret = std::fs::metadata(scene.outside("secret")).unwrap();
    assert_eq!(std::fs::read_to_string(scene.outside("secret")).unwrap(), "secret");
    assert_ne!(secret.mtime(), 77);
    assert_eq!(std::fs::read_dir(scene.outside("")).unwrap().count(), 1);
}

#[test]
fn a_directory_swapped_for_a_symlink_is_not_followed() {
    // No descriptor is kept, so that every step goes by name again.
    let scene = Scene::with(Options { max_directories: 0, ..Options::default() });
    std::fs::create_dir_all(scene.host("a/b")).unwrap();
    scene.put("a/b/secret", "mine");
    let client = scene.client();
    let root = share(&client).node;
    let b = client.walk(root, &["a", "b"]).unwrap().node;
    let file = client.lookup(b, b"secret").unwrap().node;
    // The host's user, or another sandbox in the same folder, swaps it.
    std::fs::rename(scene.host("a/b"), scene.host("a/c")).unwrap();
    symlink(scene.outside(""), scene.host("a/b")).unwrap();
    for errno in [
        client.lookup(b, b"secret").unwrap_err(),
        client.open(file, O_RDWR).unwrap_err(),
        client.create(b, b"new", 0o644, O_RDWR).unwrap_err(),
        client.unlink(b, b"secret").unwrap_err(),
        client.mkdir(b, b"new", 0o755).unwrap_err(),
        client.getattr(file, None).unwrap_err(),
        client.truncate(file, None, 0).unwrap_err(),
        client.chmod(file, 0o777).unwrap_err(),
        client.opendir(b).unwrap_err(),
        client.link(file, root, b"stolen").unwrap_err(),
    ] {
        assert_eq!(errno, Errno::STALE);
    }
    // A file swapped for a link likewise.
    scene.put("plain", "mine");
    let plain = client.lookup(root, b"plain").unwrap().node;
    std::fs::remove_file(scene.host("plain")).unwrap();
    symlink(scene.outside("secret"), scene.host("plain")).unwrap();
    assert_eq!(client.open(plain, O_RDWR), Err(Errno::STALE));
    assert_eq!(client.truncate(plain, None, 0), Err(Errno::STALE));
    assert_eq!(client.chmod(plain, 0o777), Err(Errno::STALE));
    assert_eq!(std::fs::read_to_string(scene.outside("secret")).unwrap(), "secret");
    assert_eq!(std::fs::read_dir(scene.outside("")).unwrap().count(), 1);
}

#[test]
fn the_share_itself_swapped_or_removed_does_not_let_out() {
    let scene = Scene::new();
    scene.put("file", "inside");
    let client = scene.client();
    let root = share(&client).node;
    std::fs::rename(scene.host(""), scene.dir.path().join("moved")).unwrap();
    symlink(scene.outside(""), scene.dir.path().join("share")).unwrap();
    // The share is the folder that was opened, whatever its old name says.
    assert_eq!(client.lookup(root, b"secret"), Err(Errno::NOENT));
    let file = client.lookup(root, b"file").unwrap().node;
    let handle = client.open(file, O_RDONLY).unwrap();
    assert_eq!(client.read(handle, 0, 10).unwrap(), b"inside");
    assert_eq!(client.lookup(ROOT, b"0").unwrap().node, root);
    std::fs::remove_dir_all(scene.dir.path().join("moved")).unwrap();
    assert!(client.create(root, b"new", 0o644, O_RDWR).is_err());
    assert!(client.list(root, 4096).unwrap_or_default().len() <= 2);
}

#[test]
fn nothing_is_made_renamed_or_linked_across_shares_or_above_them() {
    let scene = Scene::serving(Options::default(), |dir| {
        std::fs::create_dir(dir.join("other")).unwrap();
        ["share", "other"].map(|name| Share::open(&dir.join(name), false).unwrap()).into()
    });
    scene.put("file", "x");
    let client = scene.client();
    let (first, second) = (share(&client).node, client.lookup(ROOT, b"1").unwrap().node);
    let file = client.lookup(first, b"file").unwrap().node;
    assert_eq!(client.rename(first, b"file", second, b"file", 0), Err(Errno::XDEV));
    assert_eq!(client.rename(first, b"file", second, b"file", 2), Err(Errno::XDEV));
    assert_eq!(client.link(file, second, b"file"), Err(Errno::XDEV));
    for errno in [
        client.mkdir(ROOT, b"x", 0o755).unwrap_err(),
        client.create(ROOT, b"x", 0o644, O_RDWR).unwrap_err(),
        client.symlink(ROOT, b"x", b"y").unwrap_err(),
        client.unlink(ROOT, b"0").unwrap_err(),
        client.rmdir(ROOT, b"0").unwrap_err(),
        client.rename(ROOT, b"0", ROOT, b"2", 0).unwrap_err(),
        client.rename(first, b"file", ROOT, b"2", 0).unwrap_err(),
        client.link(file, ROOT, b"2").unwrap_err(),
        client.chmod(ROOT, 0o777).unwrap_err(),
        client.setxattr(ROOT, b"user.x", b"1", 0).unwrap_err(),
    ] {
        assert_eq!(errno, Errno::ROFS);
    }
    for name in [&b"2"[..], b"-1", b"+0", b"00", b"0x0", b"share", b"18446744073709551616"] {
        assert_eq!(client.lookup(ROOT, name), Err(Errno::NOENT));
    }
    let names: Vec<Vec<u8>> = client.list(ROOT, 4096).unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, [&b"."[..], b"..", b"0", b"1"]);
}

#[test]
fn read_only_holds_for_every_operation() {
    let scene = Scene::read_only();
    scene.put("file", "content");
    std::fs::create_dir(scene.host("dir")).unwrap();
    let client = scene.client();
    client.uid.set(0);
    let root = share(&client).node;
    let file = client.lookup(root, b"file").unwrap().node;
    let handle = client.open(file, O_RDONLY).unwrap();
    let set_time = RawSetAttr { valid: 1 << 5, mtime: 1, ..RawSetAttr::default() };
    for (what, outcome) in [
        ("open w", client.open(file, O_WRONLY).map(drop)),
        ("open rw", client.open(file, O_RDWR).map(drop)),
        ("open trunc", client.open(file, O_RDONLY | O_TRUNC).map(drop)),
        ("create", client.create(root, b"new", 0o644, O_RDWR).map(drop)),
        ("create existing", client.create(root, b"file", 0o644, O_RDWR).map(drop)),
        ("mknod", client.mknod(root, b"new", 0o100644).map(drop)),
        ("mkdir", client.mkdir(root, b"new", 0o755).map(drop)),
        ("symlink", client.symlink(root, b"new", b"t").map(drop)),
        ("link", client.link(file, root, b"new").map(drop)),
        ("unlink", client.unlink(root, b"file")),
        ("rmdir", client.rmdir(root, b"dir")),
        ("rename", client.rename(root, b"file", root, b"new", 0)),
        ("exchange", client.rename(root, b"file", root, b"dir", 2)),
        ("chmod", client.chmod(file, 0o777).map(drop)),
        ("chown", client.chown(file, 0, 0).map(drop)),
        ("times", client.setattr(file, set_time).map(drop)),
        ("truncate", client.truncate(file, None, 0).map(drop)),
        ("truncate by handle", client.truncate(file, Some(handle), 0).map(drop)),
        ("write", client.write(handle, 0, b"x", 0).map(drop)),
        ("append", client.write(handle, 0, b"x", O_APPEND).map(drop)),
        ("fallocate", client.fallocate(handle, 0, 100, 0)),
        ("punch", client.fallocate(handle, 0, 4, 3)),
        ("copy", client.copy_file_range((handle, 0), (handle, 4), 1).map(drop)),
        ("setxattr", client.setxattr(file, b"user.x", b"1", 0)),
        ("removexattr", client.removexattr(file, b"user.x")),
    ] {
        assert_eq!(outcome, Err(Errno::ROFS), "{what}");
    }
    assert_eq!(client.read(handle, 0, 100).unwrap(), b"content");
    assert_eq!(scene.text("file"), "content");
    assert_eq!(std::fs::read_dir(scene.host("")).unwrap().count(), 2);
}

/// As in a tree that somebody changed into with chroot.
#[test]
fn a_mounted_proc_or_sysfs_is_not_entered() {
    let root = std::path::Path::new("/");
    let scene = Scene::serving(Options::default(), |_| vec![Share::open(root, true).unwrap()]);
    let client = scene.client();
    let root = share(&client).node;
    assert_eq!(client.lookup(root, b"proc"), Err(Errno::ACCESS));
    assert_eq!(client.lookup(root, b"sys"), Err(Errno::ACCESS));
    client.lookup(root, b"etc").unwrap();
}

#[test]
fn a_handle_opened_for_reading_does_not_write() {
    let scene = Scene::new();
    scene.put("file", "content");
    let client = scene.client();
    let file = client.lookup(share(&client).node, b"file").unwrap().node;
    let reader = client.open(file, O_RDONLY).unwrap();
    let writer = client.open(file, O_WRONLY).unwrap();
    assert_eq!(client.write(reader, 0, b"x", 0), Err(Errno::BADF));
    assert_eq!(client.fallocate(reader, 0, 1, 0), Err(Errno::BADF));
    assert_eq!(client.copy_file_range((writer, 0), (writer, 9), 1), Err(Errno::BADF));
    assert_eq!(client.read(writer, 0, 1), Err(Errno::BADF));
    let dir = client.opendir(share(&client).node).unwrap();
    assert_eq!(client.read(dir, 0, 1), Err(Errno::BADF));
    assert_eq!(client.readdir(reader, 0, 4096, false), Err(Errno::BADF));
    assert_eq!(client.read(Handle(u64::MAX), 0, 1), Err(Errno::BADF));
    assert_eq!(client.release(Handle(12345)), Err(Errno::BADF));
    client.release(reader).unwrap();
    assert_eq!(client.release(reader), Err(Errno::BADF));
}

#[test]
fn special_files_are_shown_without_numbers_and_never_opened_or_made() {
    let scene = Scene::new();
    let dir = std::fs::File::open(scene.host("")).unwrap();
    use rustix::fs::{FileType, Mode, mknodat};
    mknodat(&dir, "pipe", FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
    mknodat(&dir, "sock", FileType::Socket, Mode::from_raw_mode(0o666), 0).unwrap();
    let mut names = vec!["pipe", "sock"];
    // Making a device takes privilege; without it the other two stand for it.
    if mknodat(&dir, "null", FileType::CharacterDevice, Mode::from_raw_mode(0o666), 0x103).is_ok() {
        names.push("null");
    }
    let client = scene.client();
    let root = share(&client).node;
    for name in names {
        let seen = client.lookup(root, name.as_bytes()).unwrap();
        assert_eq!(seen.rdev, 0, "{name}");
        for flags in [O_RDONLY, O_WRONLY, O_RDWR | O_TRUNC] {
            assert_eq!(client.open(seen.node, flags), Err(Errno::PERM), "{name}");
        }
        assert_eq!(client.create(root, name.as_bytes(), 0o644, O_RDWR), Err(Errno::PERM), "{name}");
        assert_eq!(client.truncate(seen.node, None, 0), Err(Errno::PERM), "{name}");
        assert!(client.setxattr(seen.node, b"user.x", b"1", 0).is_err());
        client.unlink(root, name.as_bytes()).unwrap();
    }
    for kind in [0o010000, 0o020000, 0o060000, 0o140000, 0o040000, 0o120000] {
        assert_eq!(client.mknod(root, b"new", kind | 0o666), Err(Errno::PERM), "{kind:o}");
    }
    client.mknod(root, b"regular", 0o100640).unwrap();
    assert_eq!(std::fs::metadata(scene.host("regular")).unwrap().mode(), 0o100640);
}

#[test]
fn set_id_bits_do_not_reach_the_host_nor_the_guest() {
    let scene = Scene::new();
    let client = scene.client();
    let root = share(&client).node;
    let mode = |path: &str| std::fs::metadata(scene.host(path)).unwrap().mode() & 0o7777;

    let (made, handle) = client.create(root, b"made", 0o6755, O_RDWR).unwrap();
    assert_eq!((made.mode, mode("made")), (0o100755, 0o755));
    assert_eq!(client.chmod(made.node, 0o6777).unwrap().mode, 0o100777);
    assert_eq!(mode("made"), 0o777);
    client.mknod(root, b"node", 0o104755).unwrap();
    assert_eq!(mode("node"), 0o755);
    client.mkdir(root, b"dir", 0o7777).unwrap();
    assert_eq!(mode("dir"), 0o1777);
    client.release(handle).unwrap();

    // The host's own set-id program: not shown as one, and none any more when the guest has opened it for writing.
    scene.put("tool", "#!/bin/true");
    std::fs::set_permissions(scene.host("tool"), PermissionsExt::from_mode(0o6755)).unwrap();
    let tool = client.lookup(root, b"tool").unwrap();
    assert_eq!(tool.mode, 0o100755);
    client.open(tool.node, O_RDONLY).unwrap();
    assert_eq!(mode("tool"), 0o6755);
    client.open(tool.node, O_WRONLY).unwrap();
    assert_eq!(mode("tool"), 0o755);
    std::fs::set_permissions(scene.host("tool"), PermissionsExt::from_mode(0o4755)).unwrap();
    client.truncate(tool.node, None, 0).unwrap();
    assert_eq!(mode("tool"), 0o755);
}

#[test]
fn only_user_attributes_exist_and_ours_is_hidden() {
    let scene = Scene::new();
    scene.put("file", "x");
    let client = scene.client();
    let root = share(&client).node;
    let file = client.lookup(root, b"file").unwrap().node;
    let names = [
        &b"security.capability"[..],
        b"security.selinux",
        b"trusted.x",
        b"system.posix_acl_access",
        b"user.",
        b"user.vivarium.owner",
        b"user.vivarium.x",
        b"other",
    ];
    for name in names {
        let what = String::from_utf8_lossy(name);
        assert_eq!(client.setxattr(file, name, b"0:0", 0), Err(Errno::NOTSUP), "{what}");
        assert_eq!(client.getxattr(file, name), Err(Errno::NOTSUP), "{what}");
        assert_eq!(client.removexattr(file, name), Err(Errno::NOTSUP), "{what}");
    }
    client.chown(file, 5, 6).unwrap();
    client.setxattr(file, b"user.mine", b"\0\xff", 1).unwrap();
    assert_eq!(client.setxattr(file, b"user.mine", b"", 1), Err(Errno::EXIST));
    assert_eq!(client.setxattr(file, b"user.none", b"", 2), Err(Errno::NODATA));
    assert_eq!(client.getxattr(file, b"user.mine").unwrap(), b"\0\xff");
    assert_eq!(client.listxattr(file).unwrap(), [b"user.mine"]);
    client.removexattr(file, b"user.mine").unwrap();
    assert_eq!(client.getxattr(file, b"user.mine"), Err(Errno::NODATA));
    let handle = std::fs::File::open(scene.host("file")).unwrap();
    let mut value = [0u8; 32];
    let len = rustix::fs::fgetxattr(&handle, c"user.vivarium.owner", &mut value).unwrap();
    assert_eq!(&value[..len], b"5:6");
    // A capability that the host's file has is not shown, and goes when the guest writes.
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let flags = rustix::fs::XattrFlags::empty();
    if rustix::fs::fsetxattr(&handle, c"security.capability", capability, flags).is_ok() {
        assert_eq!(client.listxattr(file).unwrap(), Vec::<Vec<u8>>::new());
        let writer = client.open(file, O_WRONLY).unwrap();
        client.write(writer, 0, b"y", 0).unwrap();
        assert!(rustix::fs::fgetxattr(&handle, c"security.capability", &mut value).is_err());
    }
}

#[test]
fn made_up_nodes_and_counts_do_no_harm() {
    let scene = Scene::new();
    scene.put("file", "x");
    let client = scene.client();
    let root = share(&client).node;
    let file = client.lookup(root, b"file").unwrap().node;
    for node in [NodeId(0), NodeId(999_999), NodeId(u64::MAX)] {
        assert_eq!(client.getattr(node, None), Err(Errno::STALE));
        assert_eq!(client.lookup(node, b"x"), Err(Errno::STALE));
        assert_eq!(client.open(node, O_RDONLY), Err(Errno::STALE));
        assert!(client.forget(node, 5));
    }
    assert!(client.forget(file, u64::MAX));
    assert_eq!(client.getattr(file, None), Err(Errno::STALE));
    assert!(client.forget(file, 1));
    assert!(client.forget(root, u64::MAX), "a share's root stays");
    assert!(client.forget(ROOT, u64::MAX));
    let file = client.lookup(root, b"file").unwrap().node;
    assert!(client.batch_forget(u32::MAX, &[(file, 1)]), "claims more than it sends: nothing is forgotten");
    client.getattr(file, None).unwrap();
    assert!(client.batch_forget(2, &[(file, 7), (file, 1)]));
    assert_eq!(client.getattr(file, None), Err(Errno::STALE));
}

#[test]
fn limits_hold_and_are_given_back() {
    let scene = Scene::with(Options { max_node_bytes: 2100, max_handles: 2, ..Options::default() });
    for name in ["a", "b", "c", "d", "e"] {
        scene.put(name, "");
    }
    let client = scene.client();
    let root = share(&client).node;
    let nodes: Vec<NodeId> =
        ["a", "b", "c", "d"].map(|n| client.lookup(root, n.as_bytes()).unwrap().node).into();
    assert_eq!(client.lookup(root, b"e"), Err(Errno::NFILE));
    assert!(client.forget(nodes[0], 1));
    client.lookup(root, b"e").unwrap();
    let first = client.open(nodes[1], O_RDONLY).unwrap();
    client.opendir(root).unwrap();
    assert_eq!(client.open(nodes[2], O_RDONLY), Err(Errno::NFILE));
    assert_eq!(client.opendir(root), Err(Errno::NFILE));
    assert_eq!(client.create(root, b"new", 0o644, O_RDWR), Err(Errno::NFILE));
    assert!(!scene.host("new").exists());
    client.release(first).unwrap();
    client.open(nodes[2], O_RDONLY).unwrap();
}

#[test]
fn long_names_count_for_what_they_are() {
    // Room for three nodes with short names, or for two with the longest.
    let scene = Scene::with(Options { max_node_bytes: 3 * 512 + 100, ..Options::default() });
    let long: Vec<[u8; 255]> = [b'a', b'b', b'c'].map(|letter| [letter; 255]).into();
    for name in &long {
        scene.put(std::str::from_utf8(name).unwrap(), "");
    }
    for name in ["x", "y", "z"] {
        scene.put(name, "");
    }
    let client = scene.client();
    let root = share(&client).node;
    let held: Vec<NodeId> = long[..2].iter().map(|name| client.lookup(root, name).unwrap().node).collect();
    assert_eq!(client.lookup(root, &long[2]), Err(Errno::NFILE));
    assert!(held.iter().all(|node| client.forget(*node, 1)));
    for name in ["x", "y", "z"] {
        client.lookup(root, name.as_bytes()).unwrap();
    }
    // A name does not grow past it either, by a rename, by another link to the file, or by both at once.
    assert_eq!(client.rename(root, b"x", root, &[b'n'; 255], 0), Err(Errno::NFILE));
    assert!(scene.host("x").exists());
    std::fs::hard_link(scene.host("y"), scene.host(&"m".repeat(255))).unwrap();
    assert_eq!(client.lookup(root, &[b'm'; 255]), Err(Errno::NFILE));
    client.rename(root, b"x", root, &[b'n'; 50], 0).unwrap();
    client.rename(root, &[b'n'; 50], root, b"x", 0).unwrap();
    client.rename(root, b"y", root, &[b'n'; 90], 0).unwrap();
}

#[test]
fn a_tree_deeper_than_a_path_may_be_neither_overflows_nor_leaks() {
    let scene = Scene::with(Options { max_directories: 2, ..Options::default() });
    let client = scene.client();
    let mut at = share(&client).node;
    let name = [b'd'; 200];
    let mut nodes = Vec::new();
    // 400 × 201 bytes: 20 times PATH_MAX.
    for _ in 0..400 {
        at = client.mkdir(at, &name, 0o755).unwrap().node;
        nodes.push(at);
    }
    let (file, handle) = client.create(at, b"deep", 0o644, O_RDWR).unwrap();
    client.write(handle, 0, b"down here", 0).unwrap();
    client.release(handle).unwrap();
    // Every directory's descriptor is gone from the cache but two; the file is reached by 400 names.
    let handle = client.open(file.node, O_RDONLY).unwrap();
    assert_eq!(client.read(handle, 0, 99).unwrap(), b"down here");
    client.release(handle).unwrap();
    // The guest forgets all but the deepest: the parents live on for its sake, and no longer.
    for node in &nodes[..399] {
        client.forget(*node, 1);
    }
    client.open(file.node, O_RDONLY).and_then(|handle| client.release(handle)).unwrap();
    client.forget(nodes[399], 1);
    client.forget(file.node, 1);
    assert!(scene.server.file_system().load().0 <= 4, "{:?}", scene.server.file_system().load());
    remove_deep(&scene.host(""), &name);
}

/// `remove_dir_all` gives up at this depth.
fn remove_deep(top: &std::path::Path, name: &[u8]) {
    use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
    let name = CString::new(name).unwrap();
    let mut chain = vec![std::os::fd::OwnedFd::from(std::fs::File::open(top).unwrap())];
    while let Ok(fd) = openat(chain.last().unwrap(), &name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
    {
        chain.push(fd);
    }
    let _ = unlinkat(chain.last().unwrap(), c"deep", AtFlags::empty());
    while chain.len() > 1 {
        chain.pop();
        unlinkat(chain.last().unwrap(), &name, AtFlags::REMOVEDIR).unwrap();
    }
}

#[test]
fn all_of_this_as_an_ordinary_user() {
    run_all_as_ordinary_user("all_of_this_as_an_ordinary_user");
}
