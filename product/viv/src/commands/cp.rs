//! `viv cp`: files and folders into a sandbox and out of it, by a `tar` in the guest.

mod interrupted;
mod stream;

use std::ffi::{OsStr, OsString};
use std::io::{IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sandbox::client::Held;
use sandbox::copy::{self, CopyError};
use sandbox::folder::{Sandbox, Sandboxes};
use sandbox::places::Places;
use sandbox::workspace::Share;

use self::interrupted::Interrupted;
use self::stream::{Guest, Output};
use crate::cli::CpOptions;
use sandbox::control::Attention;

use crate::commands::{Spinner, hold_known, may_interact};
use crate::failure::Failure;

/// Says what a path of the guest's is: a folder, a file, something that is not copied, nothing in a folder that is there, or nothing
/// at all. What a kernel makes up as it is read tells no size that could be believed: of such a file its mode and time are said.
const LOOK: &str = r#"p=$1
made_up() {
  case $(stat -f -c %T -- "$p") in
    proc|sysfs|cgroup*|debugfs|tracefs|securityfs|configfs|binfmt_misc|bpf_fs|pstorefs) ;;
    *) false
  esac
}
if [ -d "$p" ] && { [ "$2" = in ] || [ ! -L "${p%/}" ]; }; then
  if [ "$2" = out ] && made_up; then echo made-up-folder; else echo folder; fi
elif [ -L "$p" ] && [ "$2" = out ]; then echo file
elif [ -c "$p" ] || [ -b "$p" ]; then echo a device
elif [ -p "$p" ]; then echo a pipe
elif [ -S "$p" ]; then echo a socket
elif [ -f "$p" ] && [ "$2" = out ] && made_up; then echo "made-up $(stat -c '%a %Y' -- "$p")"
elif [ -e "$p" ] || [ -L "$p" ]; then echo file
else
  # A name may end in a newline, which $(…) would take away.
  d=$(dirname -- "$p"; printf x)
  if [ -d "${d%??}" ]; then echo new; else echo nothing; fi
fi"#;

/// What is to be copied out of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Folder,
    File,
    /// A file of the kernel's, which has what is read of it. The time is in seconds since 1970.
    MadeUp {
        mode: u32,
        mtime: u64,
    },
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// A path of the host.
    Host(PathBuf),
    /// A path in a sandbox.
    Guest(String, Vec<u8>),
    /// The standard input or output, as a tar archive.
    Stream,
}

/// The verb.
pub(crate) fn run(options: &CpOptions, no_input: bool) -> Result<u8, Failure> {
    let user = options.user.clone().unwrap_or_default();
    let (from, to) = (end(&options.from), end(&options.to));
    let ((End::Guest(name, _), _) | (_, End::Guest(name, _))) = (&from, &to) else {
        return Err(Failure::new("neither of the two is in a sandbox")
            .hint("write NAME:PATH for the one that is:  viv cp shell-api:notes.txt ."));
    };
    let places = Places::from_env()?;
    let sandbox = Sandboxes::open(&places)?.find(name)?;
    if let (End::Guest(..), End::Stream) = (&from, &to)
        && std::io::stdout().is_terminal()
    {
        return Err(
            Failure::new("an archive is nothing for a terminal").hint("viv cp NAME:PATH - > FILE.tar")
        );
    }
    // What is wrong on the host is said before anything is started.
    let source = match &from {
        End::Host(path) => {
            let source =
                copy::source(path, &sandbox.spec.shares).map_err(|error| unreadable(path, &error))?;
            if let Some(kind) = source.special {
                return Err(nothing_to_copy(&path.display().to_string(), kind).hint(format!(
                    "a program in the sandbox can read it:  viv exec -i {} COMMAND < {}",
                    sandbox.spec.name,
                    path.display()
                )));
            }
            Some(source)
        }
        _ => None,
    };
    let interactive = may_interact(no_input);
    let held = hold_known(&places, &sandbox, Attention::default(), interactive)?;
    let moved = bytes_moved();
    let _shown = interactive.then(|| Spinner::after(moved.clone(), Duration::from_secs(1)));
    let copy = Copy { sandbox: &sandbox, held: &held, user, moved };
    match (&from, source, &to) {
        (End::Guest(..), _, End::Guest(..)) => {
            Err(Failure::new("both are in sandboxes").hint("copy to a folder of the host, and on from there"))
        }
        (End::Host(from), Some(source), End::Guest(_, to)) => copy.send(from, &source, to),
        (End::Stream, _, End::Guest(_, to)) => copy.send_archive(to),
        (End::Guest(_, from), _, End::Host(to)) => copy.fetch(from, to),
        (End::Guest(_, from), ..) => copy.fetch_archive(from),
        _ => Ok(()),
    }?;
    Ok(0)
}

/// What a word of the command line means. A path of the host with a colon is written with its folder: `./a:b`.
fn end(word: &OsStr) -> End {
    let bytes = word.as_bytes();
    if bytes == b"-" {
        return End::Stream;
    }
    let name = bytes.iter().position(|byte| *byte == b':').and_then(|at| {
        let (name, path) = bytes.split_at_checked(at)?;
        let name = std::str::from_utf8(name).ok()?;
        let is_name = !name.is_empty() && !name.contains('/') && !name.starts_with('.');
        is_name.then(|| (name.to_owned(), path.get(1..).unwrap_or_default().to_vec()))
    });
    match name {
        Some((name, path)) => End::Guest(name, if path.is_empty() { b".".to_vec() } else { path }),
        None => End::Host(word.into()),
    }
}

/// The folder around a path and the name in it; a path that names a folder by its content gives that and `.`.
fn split(path: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let trimmed = path
        .iter()
        .rposition(|byte| *byte != b'/')
        .map_or(&b""[..], |at| path.get(..=at).unwrap_or_default());
    let (folder, name) = match trimmed.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (trimmed.get(..=at).unwrap_or_default(), trimmed.get(at + 1..).unwrap_or_default()),
        None => (&b"."[..], trimmed),
    };
    match name {
        b"" => (b"/".to_vec(), b".".to_vec()),
        b"." | b".." => (trimmed.to_vec(), b".".to_vec()),
        name => (folder.to_vec(), name.to_vec()),
    }
}

/// How much has been copied; drawn only where somebody looks.
fn bytes_moved() -> ProgressBar {
    let style = ProgressStyle::with_template("  {spinner} {decimal_bytes}  {decimal_bytes_per_sec}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
    ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()).with_style(style)
}

struct Copy<'c> {
    sandbox: &'c Sandbox,
    held: &'c Held,
    user: String,
    moved: ProgressBar,
}

impl Copy<'_> {
    fn guest(&self, argv: &[&[u8]], input: bool) -> Result<Guest, Failure> {
        let cwd = self.sandbox.spec.guest_workspace().as_os_str().as_bytes();
        Guest::start(self.held.agent()?, argv, cwd, &self.user, input, &self.moved)
    }

    fn shares(&self) -> &[Share] {
        &self.sandbox.spec.shares
    }

    /// What is at a path in the guest; `way` is `in` for where something is copied to.
    fn look(&self, path: &[u8], way: &[u8]) -> Result<String, Failure> {
        let guest = self.guest(&[b"sh", b"-c", LOOK.as_bytes(), b"sh", path, way], false)?;
        guest.answer()
    }

    /// What is to be copied out; an error when nothing is there, or nothing that can be copied.
    fn find(&self, path: &[u8]) -> Result<Found, Failure> {
        let said = self.look(path, b"out")?;
        let (name, shown) = (&self.sandbox.spec.name, String::from_utf8_lossy(path));
        let mut words = said.split(' ');
        match (words.next().unwrap_or_default(), words.next(), words.next()) {
            ("folder", ..) => Ok(Found::Folder),
            ("file", ..) => Ok(Found::File),
            ("made-up", Some(mode), Some(mtime)) => Ok(Found::MadeUp {
                // What a guest says of them is its own affair.
                mode: u32::from_str_radix(mode, 8).unwrap_or(0o444),
                mtime: mtime.parse().unwrap_or_default(),
            }),
            ("made-up-folder", ..) => Err(Failure::new(format!(
                "{shown} in {name} has what the kernel makes up as it is read, and is not copied as a folder"
            ))
            .hint(format!("files of it can be, one by one; viv exec {name} ls {shown} shows them"))),
            ("a", Some(kind @ ("device" | "pipe" | "socket")), _) => {
                let failure = nothing_to_copy(&format!("{shown} in {name}"), &format!("a {kind}"));
                Err(match kind {
                    "socket" => {
                        failure.hint(format!("viv exec {name} COMMAND runs a program that talks to it"))
                    }
                    _ => failure.hint(format!(
                        "a program there can read some of it:  viv exec {name} head -c 1M {shown} > FILE"
                    )),
                })
            }
            _ => Err(self.nothing_there(path)),
        }
    }

    fn nothing_there(&self, path: &[u8]) -> Failure {
        let path = String::from_utf8_lossy(path);
        Failure::new(format!("{path} does not exist in {}", self.sandbox.spec.name))
            .hint(format!("viv exec {} ls -la PATH shows what is there", self.sandbox.spec.name))
    }

    fn unpacker(&self, folder: &[u8]) -> Result<Guest, Failure> {
        self.guest(&[b"tar", b"-x", b"-p", b"--no-same-owner", b"-f", b"-", b"-C", folder], true)
    }

    fn packer(&self, path: &[u8]) -> Result<(Guest, Vec<u8>), Failure> {
        let (folder, name) = split(path);
        let tar: [&[u8]; 10] = [
            b"tar",
            b"-c",
            b"--format=gnu",
            b"--hard-dereference",
            b"-f",
            b"-",
            b"-C",
            &folder,
            b"--",
            &name,
        ];
        Ok((self.guest(&tar, false)?, name))
    }

    fn send(&self, from: &Path, source: &copy::Source, to: &[u8]) -> Result<(), Failure> {
        let contents = from.as_os_str().as_bytes().ends_with(b"/.");
        let (folder, name) = match self.look(to, b"in")?.as_str() {
            "folder" if contents => (to.to_vec(), b".".to_vec()),
            "folder" => (to.to_vec(), source.name.as_bytes().to_vec()),
            "file" if source.is_folder => return Err(over_a_file(&String::from_utf8_lossy(to))),
            "new" if !source.is_folder && to.ends_with(b"/") => return Err(self.nothing_there(to)),
            "file" | "new" => split(to),
            kind @ ("a device" | "a pipe" | "a socket") => {
                let shown = String::from_utf8_lossy(to);
                let name = &self.sandbox.spec.name;
                return Err(Failure::new(format!(
                    "{shown} in {name} is {kind}, and a copy replaces only files"
                ))
                .hint(format!("a program there can write to it:  viv exec -i {name} tee {shown} < FILE")));
            }
            _ => return Err(self.nothing_there(&split(to).0)),
        };
        let guest = self.unpacker(&folder)?;
        let left_out = guest.feed(|input| {
            let mut out = std::io::BufWriter::with_capacity(256 << 10, input);
            let left_out = copy::pack(source, OsStr::from_bytes(&name), &mut out)?;
            out.flush().map_err(CopyError::Broken)?;
            Ok(left_out)
        })?;
        say_left_out(&left_out);
        Ok(())
    }

    fn send_archive(&self, to: &[u8]) -> Result<(), Failure> {
        if self.look(to, b"in")? != "folder" {
            return Err(Failure::new(format!("{} is no folder in the sandbox", String::from_utf8_lossy(to)))
                .hint("an archive is unpacked into a folder that is there"));
        }
        self.unpacker(to)?.feed(|input| pour(&mut std::io::stdin().lock(), input))
    }

    fn fetch(&self, from: &[u8], to: &Path) -> Result<(), Failure> {
        let found = self.find(from)?;
        if let Found::MadeUp { mode, mtime } = found {
            let (_, asked) = split(from);
            let (folder, called) = self.target(to, false, &asked)?;
            let archive = self.made_up(from, &asked, mode, mtime)?;
            let mut done = copy::Done::default();
            return copy::unpack(&*archive, folder.as_fd(), &asked, called.as_bytes(), &mut done)
                .map_err(|error| stream::failure(&error));
        }
        let (guest, asked) = self.packer(from)?;
        let (folder, called) = self.target(to, found == Found::Folder, &asked)?;
        let interrupted = Interrupted::watch(guest.line()?)?;
        let mut done = copy::Done::default();
        let outcome = guest.read_archive(|output: &mut Output| {
            copy::unpack(output, folder.as_fd(), &asked, called.as_bytes(), &mut done)
        });
        say_left_out(&done.left_out);
        if outcome.is_err() && done.files > 0 {
            let files = if done.files == 1 { "1 file".into() } else { format!("{} files", done.files) };
            eprintln!("viv: the copy is not whole: {files} were copied before it ended");
        }
        interrupted.end();
        outcome
    }

    /// The open folder of the host that a copy ends in, and what it is called there.
    fn target(&self, to: &Path, is_folder: bool, asked: &[u8]) -> Result<(OwnedFd, OsString), Failure> {
        use std::io::ErrorKind::{NotADirectory, NotFound};
        match copy::open_folder(to, self.shares()) {
            Ok(folder) => Ok((folder, OsString::from_vec(asked.to_vec()))),
            Err(error) if error.kind() == NotADirectory && is_folder => {
                Err(over_a_file(&to.display().to_string()))
            }
            Err(error) if matches!(error.kind(), NotFound | NotADirectory) => {
                let name = to.file_name().filter(|_| is_folder || !to.as_os_str().as_bytes().ends_with(b"/"));
                name.ok_or_else(|| unreadable(to, &error))?;
                let above = to.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
                copy::target(to, self.shares()).map_err(|error| unreadable(above, &error))
            }
            Err(error) => Err(unreadable(to, &error)),
        }
    }

    /// An archive of a file of the guest's that does not say its size, under this name.
    fn made_up(&self, from: &[u8], name: &[u8], mode: u32, mtime: u64) -> Result<Vec<u8>, Failure> {
        let guest = self.guest(&[b"cat", b"--", from], false)?;
        let content = guest.content(|output| copy::read_untold(output, name))?;
        copy::pack_content(OsStr::from_bytes(name), mode, mtime, &content)
            .map_err(|error| stream::failure(&error))
    }

    fn fetch_archive(&self, from: &[u8]) -> Result<(), Failure> {
        if let Found::MadeUp { mode, mtime } = self.find(from)? {
            let archive = self.made_up(from, &split(from).1, mode, mtime)?;
            let mut out = std::io::stdout().lock();
            return out
                .write_all(&archive)
                .and_then(|()| out.flush())
                .map_err(|error| stream::failure(&CopyError::Broken(error)));
        }
        let (guest, _) = self.packer(from)?;
        guest.read_archive(|output| {
            let mut out = std::io::stdout().lock();
            std::io::copy(output, &mut out).and_then(|_| out.flush()).map_err(CopyError::Broken)
        })
    }
}

/// Gives an archive on; says which side failed.
fn pour(from: &mut impl Read, to: &mut impl Write) -> Result<(), CopyError> {
    let mut piece = vec![0u8; 256 << 10];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                to.write_all(piece.get(..count).unwrap_or_default()).map_err(CopyError::Broken)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(CopyError::File {
                    what: "cannot read",
                    name: "the standard input".into(),
                    source,
                });
            }
        }
    }
}

fn nothing_to_copy(path: &str, kind: &str) -> Failure {
    Failure::new(format!("{path} is {kind}, and only files, folders and links are copied"))
}

fn over_a_file(path: &str) -> Failure {
    Failure::new(format!("{path} is a file, and a folder is to be copied there"))
        .hint("give another name, or delete the file first")
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    let path = path.display();
    if rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::LOOP) {
        return Failure::new(format!(
            "{path} leads through a symbolic link in a shared folder, which a guest may have made"
        ))
        .hint("name the folder that is meant by its own path");
    }
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            Failure::new(format!("{path} does not exist")).hint("a path in a sandbox is written NAME:PATH")
        }
        _ => sandbox::Error::file("cannot use", path.to_string(), std::io::Error::from(error.kind())).into(),
    }
}

fn say_left_out(names: &[String]) {
    for name in names {
        eprintln!("viv: {}", stream::left_out(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_a_path_of_the_host_or_in_a_sandbox() {
        for (word, expected) in [
            ("a", End::Host("a".into())),
            ("./a:b", End::Host("./a:b".into())),
            ("/a:b", End::Host("/a:b".into())),
            ("a/b:c", End::Host("a/b:c".into())),
            (":c", End::Host(":c".into())),
            ("-", End::Stream),
            ("box:/etc", End::Guest("box".into(), b"/etc".to_vec())),
            ("box:a:b", End::Guest("box".into(), b"a:b".to_vec())),
            ("box:", End::Guest("box".into(), b".".to_vec())),
        ] {
            assert_eq!(end(OsStr::new(word)), expected, "{word}");
        }
    }

    #[test]
    fn what_a_path_in_the_guest_is() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::create_dir(at("folder")).unwrap();
        std::fs::create_dir(at("odd\n")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink("folder", at("link")).unwrap();
        std::os::unix::fs::symlink("gone", at("dead")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("zero")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for (path, way, expected) in [
            ("/dev/zero", "out", "a device"),
            ("/dev/zero", "in", "a device"),
            ("zero", "out", "file"),
            ("zero", "in", "a device"),
            ("socket", "out", "a socket"),
            ("/proc/sys", "out", "made-up-folder"),
            ("/proc/sys", "in", "folder"),
            ("folder", "out", "folder"),
            ("folder", "in", "folder"),
            ("link", "in", "folder"),
            ("link", "out", "file"),
            ("dead", "in", "file"),
            ("file", "out", "file"),
            ("new", "in", "new"),
            ("odd\n/new", "in", "new"),
            ("odd/new", "in", "nothing"),
            ("none/new", "in", "nothing"),
        ] {
            let mut look = std::process::Command::new("sh");
            let said = look.args(["-c", LOOK, "sh"]).arg(at(path)).arg(way).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), expected, "{path:?} {way}");
        }
        let mut look = std::process::Command::new("sh");
        let said = look.args(["-c", LOOK, "sh", "/proc/cpuinfo", "out"]).output().unwrap();
        assert!(said.stdout.starts_with(b"made-up 444 "), "{said:?}");
    }

    #[test]
    fn an_input_that_fails_is_told_from_an_output_that_does() {
        let mut folder = std::fs::File::open("/").unwrap();
        let error = pour(&mut folder, &mut Vec::new()).unwrap_err();
        assert!(matches!(error, CopyError::File { .. }), "{error:?}");
        assert!(error.to_string().starts_with("cannot read the standard input: "), "{error}");
        let error = pour(&mut &b"x"[..], &mut &mut [0u8; 0][..]).unwrap_err();
        assert!(matches!(error, CopyError::Broken(_)), "{error:?}");
    }

    #[test]
    fn a_path_is_its_folder_and_its_name() {
        for (path, folder, name) in [
            ("a", ".", "a"),
            ("a/", ".", "a"),
            ("/a", "/", "a"),
            ("/a/b//", "/a/", "b"),
            ("/", "/", "."),
            (".", ".", "."),
            ("a/.", "a/.", "."),
            ("../..", "../..", "."),
        ] {
            let (f, n) = split(path.as_bytes());
            assert_eq!(
                (&*String::from_utf8_lossy(&f), &*String::from_utf8_lossy(&n)),
                (folder, name),
                "{path}"
            );
        }
    }
}
