//! The machine's root: busybox, the modules that it needs, the job's files and an init that runs the script.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cpio::Archive;
use crate::packages::Packages;
use crate::{Job, RunError};

/// Marks on the console around the script's output.
pub(crate) const START: &str = "=== nested: start ===";
pub(crate) const END: &str = "=== nested: end ===";

/// Modules to load, in this order; what they depend on is found in them.
const MODULES: &[&str] = &["virtio_blk", "kvm_amd", "tun", "vhost_vsock", "virtio_net"];

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin:/sbin:/usr/sbin HOME=/root TERM=dumb NO_COLOR=1
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm; mount -t devpts p /dev/pts; mount -t tmpfs t /dev/shm
mount -t tmpfs t /tmp; mount -t tmpfs t /run; mount -t cgroup2 c /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd 2>/dev/null
while read -r module; do insmod "/modules/$module" || echo "cannot load $module"; done </modules/order
ip link set lo up; hostname nested
[ -e /sys/class/net/eth0 ] && {
  ip link set eth0 up; ip address add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2
  echo 'nameserver 10.0.2.3' >/etc/resolv.conf; echo '127.0.0.1 localhost' >/etc/hosts
}
[ -b /dev/vda ] && { mkdir -p /disk; mount -t ext4 /dev/vda /disk; }
cd /root
echo "=== nested: start ==="
sh /script </dev/null 2>&1
echo "=== nested: end === $?"
sync
poweroff -f
"#;

/// Writes the whole archive to `to`.
pub(crate) fn write(to: &Path, packages: &Packages, job: &Job<'_>) -> Result<(), RunError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| RunError::File { path, source }
    };
    let mut root = Root::default();
    root.add_file(&packages.busybox, "/bin/busybox").map_err(at(&packages.busybox))?;
    for folder in ["/proc", "/sys", "/dev", "/tmp", "/run", "/root", "/sbin", "/usr/bin", "/usr/sbin", "/etc"]
    {
        root.add_folder(folder);
    }
    let order = add_modules(&mut root, &packages.modules).map_err(at(&packages.modules))?;
    root.add("/modules/order", 0o644, order.into_bytes());
    root.add("/init", 0o755, INIT.into());
    root.add("/script", 0o644, job.script.into());
    root.add(
        "/etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n".into(),
    );
    root.add("/etc/group", 0o644, "root:x:0:\nuser:x:1000:\n".into());
    for (from, path) in job.files {
        root.add_file(from, path).map_err(at(from))?;
        for library in libraries(from) {
            let path = library.to_string_lossy().into_owned();
            root.add_file(&library, &path).map_err(at(&library))?;
        }
    }
    File::create(to).and_then(|file| root.write(BufWriter::new(file))).map_err(at(to))
}

/// What the archive will hold, by path.
#[derive(Default)]
struct Root {
    folders: BTreeSet<String>,
    files: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Root {
    fn add_folder(&mut self, path: &str) {
        for (at, _) in path.match_indices('/').filter(|(at, _)| *at > 0) {
            self.folders.insert(path.get(..at).unwrap_or_default().to_owned());
        }
        self.folders.insert(path.to_owned());
    }

    fn add(&mut self, path: &str, permissions: u32, content: Vec<u8>) {
        if let Some((folder, _)) = path.rsplit_once('/').filter(|(folder, _)| !folder.is_empty()) {
            self.add_folder(folder);
        }
        self.files.insert(path.to_owned(), (permissions, content));
    }

    fn add_file(&mut self, from: &Path, path: &str) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let permissions = std::fs::metadata(from)?.permissions().mode() & 0o777;
        self.add(path, permissions, std::fs::read(from)?);
        Ok(())
    }

    /// Parents sort before what is in them.
    fn write(self, to: impl Write) -> io::Result<()> {
        let mut archive = Archive::new(to);
        for folder in &self.folders {
            archive.directory(folder)?;
        }
        // Init's output goes there before devtmpfs is mounted.
        archive.device("/dev/console", 0o600, (5, 1))?;
        archive.link("/etc/mtab", "/proc/mounts")?;
        for (path, (permissions, content)) in &self.files {
            archive.file(path, *permissions, content)?;
        }
        archive.finish().map(|_| ())
    }
}

/// Adds the modules and what they depend on, unpacked; gives the order in which they must be loaded.
fn add_modules(root: &mut Root, folder: &Path) -> io::Result<String> {
    let mut by_name = BTreeMap::new();
    index_modules(folder, &mut by_name)?;
    let mut order = Vec::new();
    for name in MODULES {
        add_module(root, &by_name, name, &mut order)?;
    }
    Ok(order.iter().map(|name| format!("{name}.ko\n")).collect())
}

fn add_module(
    root: &mut Root,
    by_name: &BTreeMap<String, PathBuf>,
    name: &str,
    order: &mut Vec<String>,
) -> io::Result<()> {
    if order.iter().any(|known| known == name) {
        return Ok(());
    }
    // What is not a module is built in.
    let Some(path) = by_name.get(name) else { return Ok(()) };
    let mut module = Vec::new();
    lzma_rust2::XzReader::new(File::open(path)?, false).read_to_end(&mut module)?;
    for dependency in dependencies(&module) {
        add_module(root, by_name, &dependency, order)?;
    }
    root.add(&format!("/modules/{name}.ko"), 0o644, module);
    order.push(name.to_owned());
    Ok(())
}

/// Finds every `NAME.ko.xz` beneath a folder; names are as the kernel has them, with underscores.
fn index_modules(folder: &Path, by_name: &mut BTreeMap<String, PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            index_modules(&path, by_name)?;
        } else if let Some(name) = entry.file_name().to_str().and_then(|name| name.strip_suffix(".ko.xz")) {
            by_name.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

/// The names after `depends=` in a module's `.modinfo`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value =
        module.get(at + KEY.len()..).unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

/// The shared libraries of a program, its loader included; none of a static one or of a script.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let Ok(output) = Command::new("ldd").arg(program).output() else { return Vec::new() };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modules_dependencies_are_read_from_it() {
        assert_eq!(dependencies(b"x\0license=GPL\0depends=kvm,irq-bypass\0name=a\0"), ["kvm", "irq_bypass"]);
        assert!(dependencies(b"\0depends=\0").is_empty());
        assert!(dependencies(b"no module").is_empty());
    }

    #[test]
    fn parents_come_before_what_is_in_them() {
        let mut root = Root::default();
        root.add("/a/b/c", 0o644, Vec::new());
        assert_eq!(root.folders.into_iter().collect::<Vec<_>>(), ["/a", "/a/b"]);
    }

    #[test]
    fn init_prints_the_marks() {
        assert!(INIT.contains(START) && INIT.contains(END));
    }
}
