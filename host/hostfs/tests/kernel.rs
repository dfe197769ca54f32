//! Ordinary programs on the file server, through this machine's own kernel (see `mounted`). Needs root and `/dev/fuse`; elsewhere
//! every case is skipped with its reason, and counted.

mod mounted;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use hostfs::{HostFs, Options, Share};
use libtest_mimic::{Arguments, Completion, Trial};
use mounted::Mounted;
use tempfile::TempDir;

/// Two shares, the second read-only, mounted.
struct Setting {
    guest: PathBuf,
    host: PathBuf,
    // In this order: unmounted before the folder goes.
    _mounted: Mounted,
    _dir: TempDir,
}

/// A case and the programs that it needs.
type Case = (&'static str, fn(&Setting), &'static [&'static str]);

macro_rules! case {
    ($name:ident $(, $program:literal)*) => {
        (stringify!($name), $name as fn(&Setting), &[$($program),*])
    };
}

const CASES: &[Case] = &[
    case!(files_hold_what_is_written_under_any_mix_of_operations),
    case!(each_side_sees_the_others_changes_at_once),
    case!(a_tree_of_twenty_thousand_files),
    case!(git_finds_its_repository_in_order, "git"),
    case!(programs_run_and_removed_files_live_on),
    case!(the_read_only_share_and_links_out_of_it_stay_shut),
];

fn main() -> ExitCode {
    let trials = CASES.iter().map(|(name, run, programs)| {
        Trial::ignorable_test(*name, move || {
            let absent = |program: &&&str| Command::new(program).arg("--version").output().is_err();
            if let Some(program) = programs.iter().find(absent) {
                return Ok(Completion::ignored_with(format!("there is no {program}")));
            }
            match setting() {
                Ok(setting) => run(&setting),
                Err(reason) => return Ok(Completion::ignored_with(reason)),
            }
            Ok(Completion::Completed)
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// The reason, if this process cannot mount.
fn setting() -> Result<Setting, String> {
    let dir = TempDir::new().unwrap();
    for name in ["mnt", "share", "fixed", "outside"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("fixed/file"), "fixed").unwrap();
    let shares = vec![
        Share::open(&dir.path().join("share"), false).unwrap(),
        Share::open(&dir.path().join("fixed"), true).unwrap(),
    ];
    let options = Options { max_directories: 64, ..Options::default() };
    Ok(Setting {
        guest: dir.path().join("mnt/0"),
        host: dir.path().join("share"),
        _mounted: Mounted::new(&dir.path().join("mnt"), HostFs::new(shares, options), 3)?,
        _dir: dir,
    })
}

/// The same numbers every time (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// Random reads, writes, cuts and new opens of one file, against an array of bytes.
fn exercise(path: &Path, seed: u64) {
    const MOST: usize = 128 * 1024;
    let mut random = Numbers(seed);
    let mut model: Vec<u8> = Vec::new();
    let open = || File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    let mut file = open();
    for step in 0..1500 {
        let (at, len) = (random.below(MOST), random.below(20_000) + 1);
        match random.below(8) {
            0..=2 => {
                let data: Vec<u8> = (0..len).map(|_| random.below(256) as u8).collect();
                file.write_all_at(&data, at as u64).unwrap();
                model.resize(model.len().max(at + len), 0);
                model[at..at + len].copy_from_slice(&data);
            }
            3..=4 => {
                let mut data = vec![0; len];
                let count = file.read_at(&mut data, at as u64).unwrap();
                let want = model.get(at..model.len().min(at + len)).unwrap_or_default();
                assert!(data[..count] == *want, "{path:?}: step {step} reads something else at {at}");
            }
            5 => {
                file.set_len(at as u64).unwrap();
                model.resize(at, 0);
            }
            6 => file = open(),
            _ => {
                let mut log = File::options().append(true).open(path).unwrap();
                log.write_all(&step.to_string().into_bytes()).unwrap();
                model.extend_from_slice(step.to_string().as_bytes());
                assert_eq!(file.metadata().unwrap().len(), model.len() as u64, "{path:?}: step {step}");
            }
        }
    }
    file.sync_all().unwrap();
    assert!(fs::read(path).unwrap() == model);
}

fn files_hold_what_is_written_under_any_mix_of_operations(setting: &Setting) {
    std::thread::scope(|threads| {
        for seed in 1..4u64 {
            let path = setting.guest.join(format!("file-{seed}"));
            threads.spawn(move || exercise(&path, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        }
    });
    for seed in 1..4 {
        let name = format!("file-{seed}");
        assert!(fs::read(setting.guest.join(&name)).unwrap() == fs::read(setting.host.join(&name)).unwrap());
    }
}

fn each_side_sees_the_others_changes_at_once(setting: &Setting) {
    let (guest, host) = (&setting.guest, &setting.host);
    for n in 1000..1200 {
        let text = format!("value {n}");
        fs::write(host.join("live"), &text).unwrap();
        assert_eq!(fs::read_to_string(guest.join("live")).unwrap(), text);
        // In place, of the same size, within the same tick of the clock.
        let other = format!("VALUE {n}");
        File::options().write(true).open(host.join("live")).unwrap().write_all(other.as_bytes()).unwrap();
        assert_eq!(fs::read_to_string(guest.join("live")).unwrap(), other);
        fs::write(guest.join("back"), &text).unwrap();
        assert_eq!(fs::read_to_string(host.join("back")).unwrap(), text);
        let name = format!("name-{n}");
        assert!(!guest.join(&name).exists());
        fs::rename(host.join("live"), host.join(&name)).unwrap();
        assert!(guest.join(&name).exists() && !guest.join("live").exists());
        fs::remove_file(host.join(&name)).unwrap();
        assert!(!guest.join(&name).exists());
    }
}

fn a_tree_of_twenty_thousand_files(setting: &Setting) {
    let tree = setting.guest.join("node_modules");
    for package in 0..200 {
        let lib = tree.join(format!("package-{package}/lib"));
        fs::create_dir_all(&lib).unwrap();
        for file in 0..100 {
            fs::write(lib.join(format!("file-{file}.js")), vec![b'x'; file * 7]).unwrap();
        }
    }
    let count = |top: &Path| {
        let mut left = vec![top.to_owned()];
        let mut files = 0;
        while let Some(dir) = left.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    left.push(entry.path());
                } else {
                    files += 1;
                }
            }
        }
        files
    };
    assert_eq!(count(&tree), 20_000);
    assert_eq!(count(&setting.host.join("node_modules")), 20_000);
    fs::remove_dir_all(&tree).unwrap();
    assert_eq!(fs::read_dir(&setting.host).unwrap().count(), 0);
}

fn git_finds_its_repository_in_order(setting: &Setting) {
    let git = |dir: &Path, arguments: &[&str]| {
        let output = Command::new("git")
            // Nothing goes on in the background when it has ended.
            .args(["-c", "maintenance.auto=false", "-c", "gc.auto=0"])
            .args(["-c", "user.email=a@b", "-c", "user.name=n", "-c", "safe.directory=*", "-C"])
            .arg(dir)
            .args(arguments)
            .env("HOME", &setting.host)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let repository = setting.guest.join("repository");
    fs::create_dir(&repository).unwrap();
    git(&repository, &["init", "-q"]);
    for n in 0..100 {
        fs::create_dir_all(repository.join(format!("d{}", n % 10))).unwrap();
        fs::write(repository.join(format!("d{}/f{n}", n % 10)), format!("{n}")).unwrap();
    }
    git(&repository, &["add", "."]);
    git(&repository, &["commit", "-q", "-m", "one"]);
    git(&setting.guest, &["clone", "-q", "repository", "clone"]);
    let clone = setting.guest.join("clone");
    assert_eq!(git(&clone, &["status", "--short"]), "");
    git(&clone, &["fsck", "--strict"]);
    // The host's git agrees, down to the index's times and inode numbers.
    let host = setting.host.join("clone");
    assert_eq!(git(&host, &["diff-files", "--name-only"]), "");
    fs::write(host.join("d1/f1"), "changed on the host").unwrap();
    assert_eq!(git(&clone, &["status", "--short"]), " M d1/f1\n");
}

fn programs_run_and_removed_files_live_on(setting: &Setting) {
    let program = setting.guest.join("true");
    fs::copy("/bin/true", &program).unwrap();
    assert!(Command::new(&program).status().unwrap().success());
    fs::set_permissions(&program, PermissionsExt::from_mode(0o4755)).unwrap();
    assert_eq!(fs::metadata(&program).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(setting.host.join("true")).unwrap().mode() & 0o7777, 0o755);
    let mut file =
        File::options().read(true).write(true).create_new(true).open(setting.guest.join("gone")).unwrap();
    file.write_all(b"content").unwrap();
    fs::remove_file(setting.guest.join("gone")).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "content");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.set_len(3).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 3);
    assert_eq!(fs::read_dir(&setting.host).unwrap().count(), 1);
}

fn the_read_only_share_and_links_out_of_it_stay_shut(setting: &Setting) {
    let fixed = setting.guest.parent().unwrap().join("1");
    let refused = |outcome: std::io::Result<()>| assert_eq!(outcome.unwrap_err().raw_os_error(), Some(30));
    refused(fs::write(fixed.join("file"), "x"));
    refused(fs::write(fixed.join("new"), "x"));
    refused(fs::remove_file(fixed.join("file")));
    refused(fs::rename(fixed.join("file"), fixed.join("other")));
    refused(fs::create_dir(fixed.join("dir")));
    refused(symlink("x", fixed.join("link")));
    refused(fs::set_permissions(fixed.join("file"), PermissionsExt::from_mode(0o777)));
    assert_eq!(fs::read(fixed.join("file")).unwrap(), b"fixed");
    // A link is followed by whoever asks, from where it stands in the mount: there is no "outside" beside the share there.
    symlink("../outside", setting.host.join("up")).unwrap();
    assert!(fs::write(setting.guest.join("up/file"), "x").is_err());
    assert_eq!(fs::read_dir(setting.host.parent().unwrap().join("outside")).unwrap().count(), 0);
}
