//! What the caller may do decides, not who asks in the guest. As root nothing is refused by modes, so these run as an
//! ordinary user, also when the tests are started by root.

mod scene;

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use fuse_wire::Errno;
use scene::*;

#[test]
fn as_an_ordinary_user() {
    run_all_as_ordinary_user("as_an_ordinary_user");
}

fn mode(scene: &Scene, path: &str) -> u32 {
    std::fs::metadata(scene.host(path)).unwrap().mode() & 0o7777
}

#[test]
fn the_guests_root_writes_the_callers_read_only_files() {
    if is_root() {
        return;
    }
    let scene = Scene::new();
    let client = scene.client();
    let root = share(&client).node;
    let (file, handle) = client.create(root, b"object", 0o444, O_RDWR).unwrap();
    client.write(handle, 0, b"made read-only", 0).unwrap();
    client.release(handle).unwrap();
    assert_eq!(mode(&scene, "object"), 0o444);
    // The guest's kernel lets only its root ask for this.
    let handle = client.open(file.node, O_RDWR).unwrap();
    client.write(handle, 0, b"x", 0).unwrap();
    assert_eq!(mode(&scene, "object"), 0o444, "and it is as it was");
    assert_eq!(client.truncate(file.node, None, 1).unwrap().size, 1);
    assert_eq!(client.chown(file.node, 0, 0).unwrap().uid, 0);
    client.setxattr(file.node, b"user.x", b"1", 0).unwrap();
    client.removexattr(file.node, b"user.x").unwrap();
    assert_eq!(mode(&scene, "object"), 0o444);
    // A mode without the owner's right to read is kept, and the server can still read.
    for wanted in [0o000, 0o200, 0o111] {
        assert_eq!(client.chmod(file.node, wanted).unwrap().mode, 0o100000 | wanted);
        let handle = client.open(file.node, O_RDWR).unwrap();
        assert_eq!(client.read(handle, 0, 9).unwrap(), b"x");
        client.release(handle).unwrap();
        assert_eq!(client.lookup(root, b"object").unwrap().mode, 0o100000 | wanted);
    }
}

#[test]
fn the_guests_root_changes_the_callers_read_only_directories() {
    if is_root() {
        return;
    }
    let scene = Scene::new();
    let client = scene.client();
    let root = share(&client).node;
    // As Go's module cache and Nix have them.
    let dir = client.mkdir(root, b"cache", 0o755).unwrap().node;
    client.create(dir, b"file", 0o444, O_RDWR).unwrap();
    for bits in [0o555, 0o000] {
        assert_eq!(client.chmod(dir, bits).unwrap().mode, 0o40000 | bits);
        let file = client.lookup(dir, b"file").unwrap();
        client.link(file.node, dir, b"linked").unwrap();
        client.rename(dir, b"linked", root, b"out", 0).unwrap();
        client.rename(root, b"out", dir, b"in", 0).unwrap();
        client.rename(dir, b"in", dir, b"within", 0).unwrap();
        client.unlink(dir, b"within").unwrap();
        client.mkdir(dir, b"sub", 0o755).unwrap();
        client.rmdir(dir, b"sub").unwrap();
        client.symlink(dir, b"sym", b"t").unwrap();
        client.unlink(dir, b"sym").unwrap();
        client.create(dir, b"new", 0o644, O_RDWR).unwrap();
        client.unlink(dir, b"new").unwrap();
        assert_eq!(client.getattr(dir, None).unwrap().mode, 0o40000 | bits);
        assert_eq!(mode(&scene, "cache"), bits | 0o500);
    }
    client.chmod(dir, 0o755).unwrap();
}

#[test]
fn other_users_files_stay_closed_and_show_what_the_caller_may_do() {
    if is_root() {
        return;
    }
    let scene = Scene::serving(hostfs::Options::default(), |_| {
        vec![hostfs::Share::open("/".as_ref(), false).unwrap()]
    });
    let client = scene.client();
    let root = share(&client).node;
    let etc = client.lookup(root, b"etc").unwrap();
    assert_eq!(
        (etc.uid, etc.mode & 0o700),
        (1000, 0o500),
        "owned by the sandbox's user, who may not write it"
    );
    let passwd = client.lookup(etc.node, b"passwd").unwrap();
    assert_eq!(passwd.mode & 0o700, 0o400);
    let handle = client.open(passwd.node, O_RDONLY).unwrap();
    assert!(!client.read(handle, 0, 100).unwrap().is_empty());
    client.uid.set(0);
    for refused in [
        client.open(passwd.node, O_RDWR).map(drop),
        client.truncate(passwd.node, None, 0).map(drop),
        client.create(etc.node, b"vivarium-test", 0o644, O_RDWR).map(drop),
        client.unlink(etc.node, b"passwd"),
        client.rename(etc.node, b"passwd", etc.node, b"passwd2", 0),
    ] {
        assert!(matches!(refused, Err(Errno::ACCESS)), "{refused:?}");
    }
    assert!(matches!(client.chmod(passwd.node, 0o777), Err(Errno::PERM)));
    assert!(matches!(client.chown(passwd.node, 0, 0), Err(Errno::ACCESS | Errno::PERM)));
    if let Ok(shadow) = client.lookup(etc.node, b"shadow") {
        assert_eq!(shadow.mode & 0o700, 0);
        assert_eq!(client.open(shadow.node, O_RDONLY), Err(Errno::ACCESS));
    }
}

#[test]
fn a_directory_that_the_caller_may_not_enter_stays_shut() {
    if is_root() {
        return;
    }
    let scene = Scene::new();
    std::fs::create_dir(scene.host("shut")).unwrap();
    scene.put("shut/file", "x");
    std::fs::set_permissions(scene.host("shut"), PermissionsExt::from_mode(0o000)).unwrap();
    let client = scene.client();
    let root = share(&client).node;
    let shut = client.lookup(root, b"shut").unwrap();
    assert_eq!(shut.mode & 0o7777, 0);
    assert_eq!(client.lookup(shut.node, b"file"), Err(Errno::ACCESS));
    assert_eq!(client.opendir(shut.node), Err(Errno::ACCESS));
    std::fs::set_permissions(scene.host("shut"), PermissionsExt::from_mode(0o755)).unwrap();
    client.lookup(shut.node, b"file").unwrap();
}
