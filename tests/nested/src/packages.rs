//! QEMU, the kernel and busybox: from the host where it has them, else from Debian's archive through the host's apt.
//!
//! apt runs with state and cache folders of its own, so that it needs no root and changes nothing on the host; it
//! verifies the archive's signature as always. Packages are unpacked, not installed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Unavailable;

const ARCHIVE: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The release that everything comes from; its QEMU is of version 10.
const SUITE: &str = "trixie";
const KERNEL: &str = "linux-image-cloud-amd64";

/// Where everything is.
#[derive(Debug)]
pub(crate) struct Packages {
    pub(crate) kernel: PathBuf,
    /// The kernel's folder of modules.
    pub(crate) modules: PathBuf,
    pub(crate) busybox: PathBuf,
    qemu: Qemu,
}

#[derive(Debug)]
enum Qemu {
    /// On the path.
    Host,
    /// Unpacked in this folder.
    Unpacked(PathBuf),
}

impl Packages {
    pub(crate) fn find_or_fetch() -> Result<Self, Unavailable> {
        let cache = cache_folder()?;
        let _lock = locked(&cache)?;
        let guest = cache.join("guest");
        if !guest.join("complete").exists() {
            fetch_guest(&cache, &guest)?;
        }
        let qemu = Qemu::find_or_fetch(&cache)?;
        let kernel = find(&guest.join("boot"), "vmlinuz-")?;
        let busybox = ["bin/busybox", "usr/bin/busybox"].map(|path| guest.join(path));
        let busybox = busybox.into_iter().find(|path| path.is_file());
        Ok(Self {
            kernel,
            modules: guest.join("usr/lib/modules"),
            busybox: busybox.ok_or_else(|| Unavailable("busybox-static holds no busybox".into()))?,
            qemu,
        })
    }

    /// A command that starts QEMU.
    pub(crate) fn qemu(&self) -> Command {
        self.qemu.command()
    }
}

impl Qemu {
    /// The caller holds the cache's lock.
    fn find_or_fetch(cache: &Path) -> Result<Self, Unavailable> {
        if host_has_qemu() { Ok(Self::Host) } else { fetch_qemu(cache).map(Self::Unpacked) }
    }

    fn command(&self) -> Command {
        match self {
            Self::Host => Command::new("qemu-system-x86_64"),
            Self::Unpacked(folder) => {
                let mut command = unpacked(folder, "qemu-system-x86_64");
                command.env("QEMU_MODULE_DIR", folder.join(LIBRARIES).join("qemu"));
                for data in ["usr/share/qemu", "usr/share/seabios"] {
                    command.arg("-L").arg(folder.join(data));
                }
                command
            }
        }
    }
}

/// One process at a time uses the cache; the lock goes with the descriptor.
fn locked(cache: &Path) -> Result<File, Unavailable> {
    let lock = File::create(cache.join("lock")).and_then(|file| file.lock().map(|()| file));
    lock.map_err(|error| Unavailable(format!("{} cannot be locked: {error}", cache.display())))
}

/// A command that starts QEMU 10 or newer for x86-64: the host's, or else Debian's.
///
/// # Errors
/// The host has none that is new enough, and it cannot be fetched.
pub fn qemu() -> Result<Command, Unavailable> {
    let cache = cache_folder()?;
    let _lock = locked(&cache)?;
    Ok(Qemu::find_or_fetch(&cache)?.command())
}

/// Where a package's libraries are when it is unpacked.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// A program that was unpacked with all of its libraries, by its own loader: its C library may be newer than the host's.
fn unpacked(folder: &Path, program: &str) -> Command {
    let libraries = folder.join(LIBRARIES);
    let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
    command.arg("--library-path").arg(&libraries).arg(folder.join("usr/bin").join(program));
    command
}

/// A program that a test judges by, such as a file system's own checker: the host's, or else the one of this package.
///
/// # Errors
/// The host has none, and it cannot be fetched.
pub fn tool(package: &str, program: &str) -> Result<Command, Unavailable> {
    if Command::new(program).arg("--help").stdin(Stdio::null()).output().is_ok() {
        return Ok(Command::new(program));
    }
    let cache = cache_folder()?;
    let _lock = locked(&cache)?;
    let folder = cache.join(package);
    if !folder.join("complete").exists() {
        Apt::new(&cache)?.unpack_with_dependencies(package, &folder)?;
    }
    Ok(unpacked(&folder, program))
}

fn cache_folder() -> Result<PathBuf, Unavailable> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = base.or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
    let folder =
        base.ok_or_else(|| Unavailable("there is no home folder to cache in".into()))?.join("vivarium/test");
    std::fs::create_dir_all(&folder)
        .map_err(|error| Unavailable(format!("{} cannot be made: {error}", folder.display())))?;
    Ok(folder)
}

/// Whether the host's QEMU is of version 10 or later.
fn host_has_qemu() -> bool {
    let Ok(output) = Command::new("qemu-system-x86_64").arg("--version").output() else { return false };
    major_version(&String::from_utf8_lossy(&output.stdout)).is_some_and(|version| version >= 10)
}

fn major_version(text: &str) -> Option<u32> {
    text.split_once("version ")?.1.split('.').next()?.parse().ok()
}

fn fetch_guest(cache: &Path, guest: &Path) -> Result<(), Unavailable> {
    let apt = Apt::new(cache)?;
    // The package that the metapackage stands for, by its first dependency.
    let about = apt.run("apt-cache", &["show", "--no-all-versions", KERNEL])?;
    let depends = about.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
    let kernel = depends.split([' ', ',']).next().filter(|name| name.starts_with("linux-image-"));
    let kernel = kernel.ok_or_else(|| Unavailable(format!("{KERNEL} names no kernel")))?;
    apt.unpack(&[kernel, "busybox-static"], guest)
}

/// Fetches QEMU with all of its libraries, the C library included: it does not care what the host is.
fn fetch_qemu(cache: &Path) -> Result<PathBuf, Unavailable> {
    let folder = cache.join("qemu");
    if !folder.join("complete").exists() {
        Apt::new(cache)?.unpack_with_dependencies("qemu-system-x86", &folder)?;
    }
    Ok(folder)
}

/// The one entry of a folder whose name starts so; the last one by name if there are several.
fn find(folder: &Path, start: &str) -> Result<PathBuf, Unavailable> {
    let entries =
        std::fs::read_dir(folder).map_err(|error| Unavailable(format!("{}: {error}", folder.display())))?;
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(start))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found.pop().ok_or_else(|| Unavailable(format!("{} holds no {start}*", folder.display())))
}

/// apt with its own lists, cache and idea of what is installed.
struct Apt {
    folder: PathBuf,
    options: Vec<String>,
}

impl Apt {
    fn new(cache: &Path) -> Result<Self, Unavailable> {
        if !Path::new(KEYRING).exists() {
            return Err(Unavailable(
                "Debian's apt and its keyring are needed to fetch what the machine is made of".into(),
            ));
        }
        let folder = cache.join("apt");
        let io = |error: std::io::Error| Unavailable(format!("{}: {error}", folder.display()));
        for part in ["lists/partial", "archives/partial"] {
            std::fs::create_dir_all(folder.join(part)).map_err(io)?;
        }
        let source = format!("deb [signed-by={KEYRING}] {ARCHIVE} {SUITE} main\n");
        std::fs::write(folder.join("sources.list"), source).map_err(io)?;
        // Nothing counts as installed.
        std::fs::write(folder.join("status"), "").map_err(io)?;
        let path = |part: &str| folder.join(part).display().to_string();
        let mut options = Vec::new();
        for (key, value) in [
            ("Dir::Etc::sourcelist", path("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
            ("Dir::Etc::preferencesparts", "/dev/null".into()),
            ("Dir::State::lists", path("lists")),
            ("Dir::State::status", path("status")),
            ("Dir::Cache", path("")),
            ("Dir::Cache::archives", path("archives")),
            ("Dir::Log", path("")),
            ("Debug::NoLocking", "true".into()),
            ("APT::Sandbox::User", String::new()),
            ("APT::Architecture", "amd64".into()),
            ("Acquire::Languages", "none".into()),
        ] {
            options.extend(["-o".to_owned(), format!("{key}={value}")]);
        }
        let apt = Self { folder, options };
        apt.run("apt-get", &["-qq", "update"])?;
        Ok(apt)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String, Unavailable> {
        let output = Command::new(program)
            .args(&self.options)
            .args(arguments)
            .current_dir(self.folder.join("archives"))
            .stdin(Stdio::null())
            .output()
            .map_err(|error| Unavailable(format!("{program} cannot be run: {error}")))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            return Err(Unavailable(format!("{program} failed: {said}")));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Unpacks these packages alone into a folder, anew.
    fn unpack(&self, packages: &[&str], to: &Path) -> Result<(), Unavailable> {
        self.clear()?;
        let mut arguments = vec!["-qq", "download"];
        arguments.extend(packages);
        self.run("apt-get", &arguments)?;
        self.unpack_archives(to)
    }

    /// Unpacks a package and everything that it depends on.
    fn unpack_with_dependencies(&self, package: &str, to: &Path) -> Result<(), Unavailable> {
        self.clear()?;
        self.run(
            "apt-get",
            &["-qq", "-y", "--no-install-recommends", "--download-only", "install", package],
        )?;
        self.unpack_archives(to)
    }

    fn archives(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.folder.join("archives")).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|end| end == "deb"))
            .collect()
    }

    fn clear(&self) -> Result<(), Unavailable> {
        self.archives()
            .iter()
            .try_for_each(std::fs::remove_file)
            .map_err(|error| Unavailable(error.to_string()))
    }

    fn unpack_archives(&self, to: &Path) -> Result<(), Unavailable> {
        let archives = self.archives();
        if archives.is_empty() {
            return Err(Unavailable("apt fetched nothing".into()));
        }
        for archive in &archives {
            let done = Command::new("dpkg-deb").arg("-x").arg(archive).arg(to).output();
            if !done.is_ok_and(|output| output.status.success()) {
                return Err(Unavailable(format!("{} cannot be unpacked", archive.display())));
            }
        }
        self.clear()?;
        std::fs::write(to.join("complete"), "").map_err(|error| Unavailable(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_tells_its_version() {
        assert_eq!(major_version("QEMU emulator version 10.0.2 (Debian 1:10)\n"), Some(10));
        assert_eq!(major_version("something else"), None);
    }
}
