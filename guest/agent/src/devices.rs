//! Finding devices: virtio ids, disks by their serial (never by order), the base on persistent memory, and the modules that drive them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::console::log;
use crate::fail::{Doing, Failure, Outcome};
use crate::mounts::make_dir;
use crate::network::VIRTIO_NET;

/// virtio-pmem (virtio 1.3 §5.19).
const VIRTIO_PMEM: u32 = 27;

/// The devices that the machine has.
#[derive(Debug)]
pub(crate) struct Devices {
    virtio: BTreeSet<u32>,
}

impl Devices {
    /// Looks what is on the virtio bus.
    pub(crate) fn scan() -> Self {
        let mut virtio = BTreeSet::new();
        for entry in fs::read_dir("/sys/bus/virtio/devices").into_iter().flatten().flatten() {
            let id = fs::read_to_string(entry.path().join("device")).unwrap_or_default();
            virtio.extend(u32::from_str_radix(id.trim().trim_start_matches("0x"), 16).ok());
        }
        Self { virtio }
    }

    pub(crate) fn has_pmem(&self) -> bool {
        self.virtio.contains(&VIRTIO_PMEM)
    }

    /// Loads the modules that the initial RAM disk brought for the devices that are there, then forgets them: the RAM disk stays in memory for ever.
    /// Those of the network card, which nothing here waits for, are returned.
    pub(crate) fn load_modules(&self) -> Outcome<Modules> {
        let order = fs::read_to_string("/modules/order").doing("Cannot read the list of modules")?;
        let first = modules_for(&order, |id| id != VIRTIO_NET && self.virtio.contains(&id));
        let mut later = Vec::new();
        if self.virtio.contains(&VIRTIO_NET) {
            later = modules_for(&order, |id| id == VIRTIO_NET);
            later.retain(|name| !first.contains(name));
        }
        let later = Modules::open(&later);
        Modules::open(&first).load();
        let _ = fs::remove_dir_all("/modules");
        Ok(later)
    }

    /// The disk with this serial.
    pub(crate) fn disk(serial: &str) -> Option<PathBuf> {
        find_disk(Path::new("/sys/block"), serial).map(|name| Path::new("/dev").join(name))
    }

    /// The first persistent-memory disk. It appears some time after its driver was loaded.
    pub(crate) fn wait_for_pmem() -> Outcome<PathBuf> {
        let device = PathBuf::from("/dev/pmem0");
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            // Its node is there a moment before it can be opened.
            if File::open(&device).is_ok() {
                return Ok(device);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(Failure::new("The persistent-memory device of the base image did not appear"))
    }

    /// Links every disk that has a serial at `/dev/disk/by-id/virtio-SERIAL`, where udev would put it.
    pub(crate) fn link_disks() -> Outcome {
        make_dir("/dev/disk/by-id")?;
        for (name, serial) in disks(Path::new("/sys/block")) {
            // There from before, or a serial with a slash in it: not ours.
            let _ = symlink(format!("../../{name}"), format!("/dev/disk/by-id/virtio-{serial}"));
        }
        Ok(())
    }
}

/// Modules, opened, in the order in which they are to be loaded.
#[derive(Debug)]
pub(crate) struct Modules(Vec<(String, File)>);

impl Modules {
    /// A module that does not open or load is logged; whoever needs it will say what is missing.
    fn open(names: &[&str]) -> Self {
        let open = |name: &&str| match File::open(format!("/modules/{name}.ko")) {
            Ok(file) => Some(((*name).to_owned(), file)),
            Err(e) => {
                log(format_args!("module {name}: {e}"));
                None
            }
        };
        Self(names.iter().filter_map(open).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn load(self) {
        for (name, file) in self.0 {
            if let Err(e) = rustix::system::finit_module(&file, c"", 0) {
                log(format_args!("module {name}: {e}"));
            }
        }
    }
}

/// The modules to load, in order and each once.
fn modules_for(order: &str, present: impl Fn(u32) -> bool) -> Vec<&str> {
    let mut wanted = Vec::new();
    for line in order.lines() {
        let mut words = line.split_ascii_whitespace();
        let device = words.next().unwrap_or("*");
        if device == "*" || device.parse().is_ok_and(&present) {
            for name in words {
                if !wanted.contains(&name) {
                    wanted.push(name);
                }
            }
        }
    }
    wanted
}

/// Name and serial of each disk that has one.
fn disks(sys_block: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(sys_block).into_iter().flatten().flatten() {
        let serial = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        let serial = serial.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        if let Some(name) = entry.file_name().to_str().filter(|_| !serial.is_empty()) {
            found.push((name.to_owned(), serial.to_owned()));
        }
    }
    found
}

fn find_disk(sys_block: &Path, serial: &str) -> Option<String> {
    disks(sys_block).into_iter().find(|(_, s)| s == serial).map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_of_present_devices_come_once_and_in_order() {
        let order =
            "19 vsock common transport\n2 virtio_blk\n27 libnvdimm nd_pmem\n* vsock erofs overlay\n\n";
        assert_eq!(
            modules_for(order, |id| id == 19 || id == 2),
            ["vsock", "common", "transport", "virtio_blk", "erofs", "overlay"]
        );
        assert_eq!(modules_for(order, |_| false), ["vsock", "erofs", "overlay"]);
    }

    #[test]
    fn disks_go_by_their_serial() {
        let dir = tempfile::tempdir().expect("a folder");
        for (name, serial) in
            [("vda", Some("viv-disk\n")), ("vdb", Some("viv-base\0\0")), ("loop0", None), ("vdc", Some(""))]
        {
            fs::create_dir(dir.path().join(name)).expect("a folder");
            if let Some(serial) = serial {
                fs::write(dir.path().join(name).join("serial"), serial).expect("a file");
            }
        }
        assert_eq!(find_disk(dir.path(), "viv-base").as_deref(), Some("vdb"));
        assert_eq!(find_disk(dir.path(), "viv-disk").as_deref(), Some("vda"));
        assert_eq!(find_disk(dir.path(), ""), None);
        assert_eq!(disks(dir.path()).len(), 2);
    }
}
