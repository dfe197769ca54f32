use super::*;
use crate::control::Attention;
use crate::network::Handover;
use crate::spec::Runtime;

pub(crate) fn sandboxes() -> (tempfile::TempDir, Sandboxes) {
    let root = tempfile::tempdir().unwrap();
    let places = Places {
        state: root.path().join("s"),
        cache: root.path().join("c"),
        config: root.path().join("e"),
        home: root.path().into(),
    };
    let all = Sandboxes::open(&places).unwrap();
    (root, all)
}

pub(crate) fn wish(path: &str, name: Option<&str>) -> Wish {
    Wish {
        name: name.map(str::to_owned),
        agent: "shell".into(),
        shares: vec![Share { path: path.into(), read_only: false, identity: None }],
        cpus: 1,
        memory: 1 << 30,
        disk: 1 << 30,
        engine: None,
        image: "i".into(),
        network: Networking::default(),
        kits: Vec::new(),
        ports: Vec::new(),
    }
}

pub(crate) fn running() -> Runtime {
    Runtime {
        schema: SCHEMA,
        pid: 1,
        state: State::Running,
        started: "2001-01-01T00:00:00Z".into(),
        ended: None,
        reason: None,
        engine: "soft".into(),
        detached: false,
    }
}

#[test]
fn the_same_workspace_is_the_same_sandbox_and_another_gets_a_number() {
    let (_root, all) = sandboxes();
    let first = all.create(&wish("/a/project", None)).unwrap().0;
    assert_eq!(first.spec.name, "shell-project");
    assert_eq!(all.create(&wish("/a/project", None)).unwrap().0.spec.id, first.spec.id);
    let second = all.create(&wish("/b/project", None)).unwrap().0;
    assert_eq!(second.spec.name, "shell-project-2");
    assert_eq!(all.create(&wish("/b/project", None)).unwrap().0.spec.id, second.spec.id);
    assert_eq!(all.list().unwrap().0.len(), 2);
}

#[test]
fn a_taken_name_is_refused_for_another_workspace_and_attached_to_for_its_own() {
    let (_root, all) = sandboxes();
    let mine = all.create(&wish("/a/x", Some("mine"))).unwrap().0;
    assert!(matches!(all.create(&wish("/b/y", Some("mine"))), Err(Error::NameTaken { .. })));
    assert_eq!(all.create(&wish("/a/x", Some("mine"))).unwrap().0.spec.id, mine.spec.id);
    assert!(matches!(all.create(&wish("/b/y", Some("-"))), Err(Error::BadName { .. })));
}

#[test]
fn ten_at_once_make_one() {
    let (_root, all) = sandboxes();
    let ids: Vec<String> = std::thread::scope(|scope| {
        let made: Vec<_> = (0..10)
            .map(|_| scope.spawn(|| all.create(&wish("/a/project", None)).unwrap().0.spec.id))
            .collect();
        made.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[test]
fn what_killed_processes_left_is_swept_and_a_lock_of_a_dead_one_is_free() {
    let (_root, all) = sandboxes();
    let leave = || {
        fs::create_dir_all(all.root.join(".new-1/disk")).unwrap();
        fs::create_dir_all(all.root.join(".gone-2/logs")).unwrap();
    };
    leave();
    assert_eq!(all.leftovers().unwrap().len(), 2);
    all.remove_leftovers().unwrap();
    assert!(all.leftovers().unwrap().is_empty());
    leave();
    let sandbox = all.create(&wish("/a/project", None)).unwrap().0;
    assert!(!all.root.join(".new-1").exists() && !all.root.join(".gone-2").exists());
    assert_eq!(sandbox.state(), State::Stopped);

    let lock = sandbox.lock(Duration::ZERO).unwrap().unwrap();
    assert_eq!(sandbox.state(), State::Starting);
    assert!(sandbox.lock(Duration::ZERO).unwrap().is_none());
    assert!(matches!(sandbox.clone().remove(), Err(Error::Running { .. })));
    drop(lock);
    // A note without a lock is history.
    let runtime = running();
    sandbox.note(&runtime).unwrap();
    assert_eq!(
        (sandbox.state(), sandbox.end(sandbox.state()).as_deref()),
        (State::Failed, Some("host restarted"))
    );
    let runtime = Runtime { started: crate::spec::rfc3339(SystemTime::now()), ..runtime };
    sandbox.note(&runtime).unwrap();
    assert_eq!(
        (sandbox.state(), sandbox.end(sandbox.state()).as_deref()),
        (State::Failed, Some("shim killed"))
    );
    let ended = Runtime { state: State::Stopped, reason: Some("idle".into()), ..runtime };
    sandbox.note(&ended).unwrap();
    assert_eq!((sandbox.state(), sandbox.end(sandbox.state()).as_deref()), (State::Stopped, Some("idle")));
    assert!(sandbox.connect().unwrap().is_none());
    sandbox.clone().remove().unwrap();
    assert_eq!(fs::read_dir(&all.root).unwrap().count(), 1, "only the lock of names is left");
    assert!(matches!(sandbox.lock(Duration::ZERO), Err(Error::UnknownSandbox { .. })));
}

#[test]
fn an_unreadable_sandbox_hides_no_other() {
    let (_root, all) = sandboxes();
    all.create(&wish("/a/project", None)).unwrap();
    fs::create_dir(all.root.join("0123456789abcdef")).unwrap();
    fs::write(all.root.join("0123456789abcdef/spec.json"), b"{\"schema\": 99}").unwrap();
    let (good, wrong) = all.list().unwrap();
    assert_eq!((good.len(), wrong.len()), (1, 1));
    assert!(matches!(wrong[0].cause(), Error::NewerFormat { .. }));
    assert_eq!(all.find("shell-pro").unwrap().spec.name, "shell-project");
    let error = all.find("0123456789abcdef").unwrap_err();
    assert!(
        error.to_string().contains("newer viv") && error.hint().unwrap().contains("newer one"),
        "{error}"
    );
}

#[test]
fn a_folder_that_the_user_names_again_is_taken_as_it_is_now() {
    let (_root, all) = sandboxes();
    let at = |inode| Some(crate::workspace::Identity { device: 1, inode });
    let mut wish = wish("/a/project", None);
    wish.shares.push(Share { path: "/a/data".into(), read_only: true, identity: at(2) });
    wish.shares[0].identity = at(1);
    let mut sandbox = all.create(&wish).unwrap().0;

    let named = [
        Share { identity: at(7), ..wish.shares[0].clone() },
        // A right that it was not given when it was made is not given by naming it.
        Share { identity: at(8), read_only: false, ..wish.shares[1].clone() },
    ];
    sandbox.adopt(&named).unwrap();
    let kept = all.by_id(&sandbox.spec.id).unwrap().spec;
    assert_eq!(kept, sandbox.spec);
    assert_eq!((kept.shares[0].identity, kept.shares[1].identity), (at(7), at(8)));
    assert!(kept.shares[1].read_only);
}

#[test]
fn a_running_sandbox_does_not_pass_for_one_with_the_folder_that_is_there_now() {
    let (_root, all) = sandboxes();
    let at = |inode| Some(crate::workspace::Identity { device: 1, inode });
    let mut wish = wish("/a/project", None);
    wish.shares[0].identity = at(1);
    let mut sandbox = all.create(&wish).unwrap().0;
    let moved = [Share { identity: at(2), ..wish.shares[0].clone() }];
    let lock = sandbox.lock(Duration::ZERO).unwrap().unwrap();
    let refused = sandbox.adopt(&moved).unwrap_err();
    assert!(matches!(refused, Error::Exchanged { .. }), "{refused}");
    assert!(refused.hint().unwrap().contains("viv stop shell-project"));
    sandbox.adopt(&wish.shares).unwrap();
    assert_eq!(all.by_id(&sandbox.spec.id).unwrap().spec.shares, wish.shares);
    drop(lock);
    sandbox.adopt(&moved).unwrap();
    assert_eq!(sandbox.spec.shares, moved);
}

#[test]
fn a_stopped_sandbox_takes_further_folders_and_a_running_one_refuses_them() {
    let (_root, all) = sandboxes();
    let wish = wish("/a/project", None);
    let mut sandbox = all.create(&wish).unwrap().0;
    let read_only = Share { read_only: true, ..wish.shares[0].clone() };
    let further = Share { path: "/a/data".into(), read_only: false, identity: None };

    let (mut stale, lock) = (sandbox.clone(), sandbox.lock(Duration::ZERO).unwrap().unwrap());
    for named in [&read_only, &further] {
        let refused = sandbox.adopt(std::slice::from_ref(named)).unwrap_err();
        assert!(matches!(refused, Error::SharesFixed { .. }), "{refused}");
    }
    assert_eq!(all.by_id(&sandbox.spec.id).unwrap().spec.shares, wish.shares);
    sandbox.adopt(&wish.shares).unwrap();
    drop(lock);

    sandbox.adopt(&[read_only.clone(), further.clone()]).unwrap();
    // Another client, which read the spec before that, takes nothing back.
    let identity = Some(crate::workspace::Identity { device: 1, inode: 9 });
    stale.adopt(&[Share { identity, ..wish.shares[0].clone() }]).unwrap();
    let shares = [Share { identity, ..read_only }, further];
    assert_eq!(all.by_id(&sandbox.spec.id).unwrap().spec.shares, shares);
    assert_eq!(stale.spec.shares, shares);
    // In a writable folder another one would not be safe, whenever it is named.
    let within = Share { path: "/a/data/within".into(), read_only: true, identity: None };
    assert!(matches!(sandbox.adopt(&[within]), Err(Error::BadWorkspace { .. })));
}

#[test]
fn only_a_sandbox_whose_first_start_has_failed_makes_room_for_another() {
    let (_root, all) = sandboxes();
    let make = |name: &str| all.create(&wish("/a/project", Some(name))).unwrap().0;
    let note = |sandbox: &Sandbox, state| sandbox.note(&Runtime { state, ..running() }).unwrap();
    let disk = |sandbox: &Sandbox| File::open(sandbox.disk_folder()).unwrap();

    let fresh = make("fresh");
    assert!(fresh.remove_if_it_never_started().unwrap().is_some(), "its client is about to start it");

    let stopped = make("stopped");
    note(&stopped, State::Stopped);
    assert!(stopped.remove_if_it_never_started().unwrap().is_some(), "somebody wanted it as it is");

    let killed = make("killed");
    note(&killed, State::Starting);
    assert!(killed.remove_if_it_never_started().unwrap().is_some());

    assert!(!make("fresh").never_started() && !make("stopped").never_started());
    assert!(!make("killed").never_started());

    let used = make("used");
    disk::create(disk(&used).as_fd(), 1 << 20).unwrap();
    disk::made(disk(&used).as_fd()).unwrap();
    note(&used, State::Failed);
    assert!(!used.never_started());
    assert!(used.remove_if_it_never_started().unwrap().is_some());

    for has_disk in [false, true] {
        let failed = make("failed");
        if has_disk {
            disk::create(disk(&failed).as_fd(), 1 << 20).unwrap();
        }
        note(&failed, State::Failed);
        assert!(failed.never_started());
        let lock = failed.lock(Duration::ZERO).unwrap().unwrap();
        let failed = failed.remove_if_it_never_started().unwrap().expect("it runs");
        drop(lock);
        let folder = failed.folder().to_owned();
        assert!(failed.remove_if_it_never_started().unwrap().is_none());
        assert!(!folder.exists());
    }
}

#[test]
fn an_end_that_cannot_be_noted_leaves_no_wrong_note() {
    let (_root, all) = sandboxes();
    let sandbox = all.create(&wish("/a/project", None)).unwrap().0;
    let runtime = running();
    sandbox.note(&runtime).unwrap();
    // What is to be written first has a folder in its place.
    fs::create_dir(sandbox.folder().join(format!("runtime.json.new-{}", std::process::id()))).unwrap();
    let ended = Runtime { state: State::Stopped, reason: Some("idle".into()), ..runtime };
    assert!(sandbox.note_end(&ended).is_err());
    assert_eq!(sandbox.runtime(), None);
}

#[test]
fn a_sandbox_that_is_checked_neither_starts_nor_runs() {
    let (_root, all) = sandboxes();
    let mut wish = wish("/a/project", None);
    let mut sandbox = all.create(&wish).unwrap().0;
    assert!(!sandbox.is_checked());
    let check = sandbox.lock_to_check(Duration::ZERO).unwrap();
    assert_eq!((sandbox.state(), sandbox.state().is_over()), (State::Checking, false));
    let is_said = |error: Error| assert!(matches!(error, Error::Checked { .. }), "{error}");
    is_said(sandbox.lock_to_check(Duration::ZERO).unwrap_err());
    is_said(sandbox.clone().remove().unwrap_err());
    wish.shares[0].read_only = true;
    is_said(sandbox.adopt(&wish.shares).unwrap_err());
    // Neither is waited for: one cannot be had, the other is so already.
    let held =
        crate::client::hold::<Error>(&sandbox, Attention::default(), || Ok(Handover::default()), || {});
    is_said(held.unwrap_err());
    assert_eq!(crate::client::stop(&sandbox, false).unwrap(), crate::client::Stopped::Already);
    drop(check);
    assert_eq!(sandbox.state(), State::Stopped);
    let lock = sandbox.lock(Duration::ZERO).unwrap().unwrap();
    assert!(matches!(sandbox.lock_to_check(Duration::ZERO), Err(Error::Running { .. })));
    // A shim that was killed and is being taken apart.
    let dying = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(800));
        drop(lock);
    });
    drop(sandbox.lock_to_check(Duration::from_secs(60)).unwrap());
    dying.join().unwrap();
    sandbox.remove().unwrap();
}

#[test]
fn the_name_of_a_sandbox_that_cannot_be_read_is_taken_all_the_same() {
    let (_root, all) = sandboxes();
    let newer = all.create(&wish("/a/project", None)).unwrap().0;
    let spec = newer.folder().join(SPEC);
    let text = fs::read_to_string(&spec).unwrap().replacen("\"schema\": 1", "\"schema\": 99", 1);
    fs::write(&spec, &text).unwrap();
    assert_eq!(all.create(&wish("/a/project", None)).unwrap().0.spec.name, "shell-project-2");
    let refused = all.create(&wish("/b/other", Some("shell-project"))).unwrap_err();
    assert!(matches!(refused, Error::Unreadable { .. }), "{refused}");
    assert!(refused.hint().unwrap().contains("newer one"));
    // A folder that has lost its spec is not passed over: it has a disk.
    fs::remove_file(&spec).unwrap();
    let wrong = all.list().unwrap().1;
    assert!(matches!(&wrong[..], [one] if matches!(one.cause(), Error::Damaged { .. })), "{wrong:?}");
    assert!(wrong[0].mend().starts_with(&format!("viv rm -f {} ", newer.spec.id)));
}

#[test]
fn a_client_that_does_not_go_on_is_not_waited_for_without_end() {
    let (_root, all) = sandboxes();
    let held = hold_names(&all.root).unwrap();
    let refused = files::hold(all.root.join(NAMES), Duration::from_millis(20)).unwrap_err();
    assert!(matches!(refused, Error::NamesHeld { .. }) && refused.hint().is_some(), "{refused}");
    drop(held);
    files::hold(all.root.join(NAMES), Duration::from_secs(10)).unwrap();
}

#[test]
fn a_new_shim_is_not_taken_for_the_killed_one_before() {
    let (_root, all) = sandboxes();
    let sandbox = all.create(&wish("/a/project", None)).unwrap().0;
    sandbox.note(&Runtime { state: State::Stopping, ..running() }).unwrap();
    fs::write(sandbox.folder().join("runtime.json.new-1"), "{").unwrap();
    assert_eq!(sandbox.state(), State::Failed);
    let lock = crate::shim::take(&sandbox).unwrap().unwrap();
    assert_eq!((sandbox.state(), sandbox.runtime()), (State::Starting, None));
    assert!(!sandbox.folder().join("runtime.json.new-1").exists());
    assert!(crate::shim::take(&sandbox).unwrap().is_none());
    drop(lock);
}

#[test]
fn a_spec_that_no_machine_can_be_made_of_is_named_with_what_can() {
    let (_root, all) = sandboxes();
    let sandbox = all.create(&wish("/a/project", None)).unwrap().0;
    let path = sandbox.folder().join(SPEC);
    let good = fs::read_to_string(&path).unwrap();
    for (from, to, words) in [
        ("\"cpus\":1", "\"cpus\":0", "it has cpus: 0, and 1 to 64 can be had"),
        ("\"cpus\":1", "\"cpus\":65", "cpus: 65"),
        ("\"memory\":1073741824", "\"memory\":1", "it has memory: 1, and 268435456 is the least"),
        ("\"disk\":1073741824", "\"disk\":0", "it has disk: 0"),
    ] {
        let compact: String = good.chars().filter(|c| !c.is_whitespace()).collect();
        assert!(compact.contains(from), "{compact}");
        fs::write(&path, compact.replace(from, to)).unwrap();
        let (found, wrong) = all.list().unwrap();
        assert!(found.is_empty() && wrong.len() == 1);
        let why = wrong[0].cause().to_string();
        assert!(why.contains(words), "{why}");
    }
    fs::write(&path, good).unwrap();
    assert_eq!(all.list().unwrap().0.len(), 1);
}
