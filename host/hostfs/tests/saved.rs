//! A session saved and gone on with by another server, as after a snapshot or in a fork's child.

mod scene;

use fuse_wire::client::Client;
use fuse_wire::{Errno, RequestHandler, RestoreError, Server};
use hostfs::{HostFs, Options, Share};
use scene::*;

/// Another server for the scene's share, as another process would have it.
fn successor(scene: &Scene, read_only: bool) -> Server<HostFs> {
    let share = Share::open(&scene.host(""), read_only).unwrap();
    Server::new(HostFs::new(vec![share], Options::default()))
}

#[test]
fn nodes_handles_and_listings_go_on() {
    let scene = Scene::with(Options { max_directories: 1, ..Options::default() });
    std::fs::create_dir_all(scene.host("a/b/c")).unwrap();
    scene.put("a/b/c/file", "content");
    for n in 0..100 {
        scene.put(&format!("a/{n:03}"), "");
    }
    let before = scene.client();
    let root = share(&before).node;
    let (a, c) = (before.lookup(root, b"a").unwrap(), before.walk(root, &["a", "b", "c"]).unwrap());
    let file = before.lookup(c.node, b"file").unwrap();
    before.lookup(c.node, b"file").unwrap();
    let (reader, writer) =
        (before.open(file.node, O_RDONLY).unwrap(), before.open(file.node, O_RDWR).unwrap());
    let listing = before.opendir(a.node).unwrap();
    let above = before.opendir(ROOT).unwrap();
    let first = before.readdir(listing, 0, 1000, false).unwrap();
    let link = before.symlink(root, b"link", b"target").unwrap();
    before.chown(link.node, 7, 8).unwrap();
    // Its parents are forgotten, it is not.
    before.forget(c.node, 1);
    let state = scene.server.save();

    let server = successor(&scene, false);
    server.restore(&state).unwrap();
    let after = Client::new(&server);
    assert_eq!(after.read(reader, 0, 100).unwrap(), b"content");
    assert_eq!(after.write(reader, 0, b"x", 0), Err(Errno::BADF));
    after.write(writer, 7, b" and more", 0).unwrap();
    assert_eq!(scene.text("a/b/c/file"), "content and more");
    assert_eq!(after.getattr(file.node, None).unwrap().size, 16);
    assert_eq!(after.getattr(link.node, None).unwrap().uid, 7, "kept in memory only");
    assert_eq!(after.readlink(link.node).unwrap(), b"target");
    assert_eq!(after.getattr(c.node, None), Err(Errno::STALE), "given back before");
    let rest = after.readdir(listing, first.last().unwrap().next, 1 << 16, false).unwrap();
    assert_eq!(first.len() + rest.len(), 103);
    assert_eq!(after.readdir(above, 0, 4096, false).unwrap().len(), 3);
    // What is new gets numbers that were never used.
    let (new, handle) = after.create(a.node, b"new", 0o644, O_RDWR).unwrap();
    assert!(before.getattr(new.node, None).is_err() && before.read(handle, 0, 1).is_err());
    assert_eq!(after.walk(root, &["a", "b", "c", "file"]).unwrap().node, file.node);
    // Two lookups before, one now.
    after.forget(file.node, 2);
    after.getattr(file.node, None).unwrap();
    after.forget(file.node, 1);
    assert_eq!(after.getattr(file.node, None), Err(Errno::STALE));
    // The server before goes on too: a parent and its fork.
    assert_eq!(before.read(reader, 0, 7).unwrap(), b"content");
}

#[test]
fn what_is_gone_or_something_else_is_stale_and_not_mistaken() {
    let scene = Scene::new();
    for name in ["unlinked", "replaced", "swapped"] {
        scene.put(name, name);
    }
    let before = scene.client();
    let root = share(&before).node;
    let open = |name: &str| {
        let node = before.lookup(root, name.as_bytes()).unwrap().node;
        (node, before.open(node, O_RDONLY).unwrap())
    };
    let (unlinked, replaced, swapped) = (open("unlinked"), open("replaced"), open("swapped"));
    before.unlink(root, b"unlinked").unwrap();
    let state = scene.server.save();
    scene.put("tmp", "another");
    std::fs::rename(scene.host("tmp"), scene.host("replaced")).unwrap();
    std::fs::remove_file(scene.host("swapped")).unwrap();
    std::os::unix::fs::symlink(scene.outside("secret"), scene.host("swapped")).unwrap();
    let server = successor(&scene, false);
    server.restore(&state).unwrap();
    let after = Client::new(&server);
    for (node, handle) in [unlinked, replaced, swapped] {
        assert_eq!(after.read(handle, 0, 100), Err(Errno::STALE));
        assert_eq!(after.getattr(node, None), Err(Errno::STALE));
        assert_eq!(after.open(node, O_RDONLY), Err(Errno::STALE));
        after.release(handle).unwrap();
    }
    // Saved once more, a lost handle stays lost.
    let again = successor(&scene, false);
    again.restore(&server.save()).unwrap();
    assert_eq!(again.file_system().load().1, 0);
}

#[test]
fn a_saved_handle_is_no_permission() {
    let scene = Scene::new();
    scene.put("file", "content");
    let before = scene.client();
    let file = before.lookup(share(&before).node, b"file").unwrap().node;
    let writer = before.open(file, O_RDWR).unwrap();
    let state = scene.server.save();
    let server = successor(&scene, true);
    server.restore(&state).unwrap();
    let after = Client::new(&server);
    assert_eq!(after.write(writer, 0, b"x", 0), Err(Errno::STALE));
    assert_eq!(after.open(file, O_RDWR), Err(Errno::ROFS));
    assert_eq!(scene.text("file"), "content");
    let other = Server::new(HostFs::new(vec![], Options::default()));
    assert!(matches!(other.restore(&state), Err(RestoreError::Unfit(_))));
}

#[test]
fn a_damaged_state_is_refused_or_harmless() {
    let scene = Scene::new();
    std::fs::create_dir_all(scene.host("dir/sub")).unwrap();
    scene.put("dir/sub/file", "content");
    let before = scene.client();
    let root = share(&before).node;
    let file = before.walk(root, &["dir", "sub", "file"]).unwrap().node;
    before.open(file, O_RDWR).unwrap();
    let dir = before.lookup(root, b"dir").unwrap().node;
    before.opendir(dir).unwrap();
    let state = scene.server.save();
    let server = successor(&scene, false);
    let (mut refused, mut taken) = (0, 0);
    for at in 0..state.len() {
        for change in [1u8, 2, 0x80, 0xff] {
            let mut damaged = state.clone();
            damaged[at] ^= change;
            for damaged in [&damaged[..], &damaged[..at]] {
                match server.restore(damaged) {
                    Ok(()) => {
                        taken += 1;
                        let client = Client::new(&server);
                        for node in 0..8 {
                            let node = fuse_wire::NodeId(node);
                            let _ = client.getattr(node, None);
                            let _ = client.lookup(node, b"x");
                            let _ = client.list(node, 4096);
                        }
                    }
                    Err(_) => {
                        refused += 1;
                        assert_eq!(server.file_system().load().1, 0, "nothing is left open");
                    }
                }
            }
        }
    }
    assert!(refused > 100 && taken > 100, "{refused} refused, {taken} taken");
    server.restore(&state).unwrap();
    assert_eq!(Client::new(&server).getattr(file, None).unwrap().size, 7);
    assert_eq!(std::fs::read(scene.outside("secret")).unwrap(), b"secret");
    server.reset();
    assert_eq!(server.file_system().load(), (1, 0));
}
