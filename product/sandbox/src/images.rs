//! The base image of sandboxes: found in the store, or made there with a machine of ours.

use std::time::Duration;

use image_builder::{Boot, BuildError, BuilderVm, VmError};
use store::{BaseImage, Store};

use crate::assets::{self, Assets};
use crate::build_vm::{self, Job, JobDisk};
use crate::engine::{self, Engine, sentence};
use crate::error::{Error, Result};
use crate::folder::Sandboxes;
use crate::places::Places;

/// How it stands with the image of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stock {
    /// It is in the cache.
    Ready,
    /// It is not, nor is the current one: making that may bring this one back, as all in the cache can be had again.
    Makeable,
    /// The current one is another: there is none to be made.
    Gone,
}

/// Files of the cache that can go.
#[derive(Clone, Debug)]
pub struct Old {
    /// What they are, for people.
    pub what: String,
    /// The files and folders.
    pub files: Vec<std::path::PathBuf>,
}

impl Old {
    /// Bytes that they take on the disk.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|path| crate::folder::room(path)).sum()
    }
}

/// The images of this user and what is needed to make and to boot one.
#[derive(Clone, Debug)]
pub struct Images<'p> {
    places: &'p Places,
    store: Store,
    /// The guest's agent, a static program.
    agent: &'static [u8],
}

impl<'p> Images<'p> {
    /// Opens the store in the cache.
    pub fn open(places: &'p Places, agent: &'static [u8]) -> Result<Self> {
        let store = Store::open(&places.cache).map_err(|error| set_up(&error))?.with_state(&places.state);
        Ok(Self { places, store, agent })
    }

    /// The current image's id, if it is ready.
    pub fn current(&self) -> Result<Option<String>> {
        Ok(self.store.base().map_err(|error| set_up(&error))?.map(|image| image.key))
    }

    /// Whether a sandbox with this image can be started.
    pub fn stock(&self, image: &str) -> Result<Stock> {
        Ok(if self.store.find(image).is_some() {
            Stock::Ready
        } else if self.current()?.is_some() {
            Stock::Gone
        } else {
            Stock::Makeable
        })
    }

    /// Whether there is room on the disk for a set-up.
    pub fn check_room(&self) -> Result<()> {
        self.store.check_room().map_err(|error| set_up(&error))
    }

    /// Whether the servers answer that a set-up downloads from; each question takes at most `patience`.
    pub fn check_servers(&self, patience: Duration) -> Result<()> {
        self.store.check_servers(patience).map_err(|error| set_up(&error))
    }

    /// Bytes that a set-up would download.
    pub fn download_bytes(&self) -> u64 {
        self.store.download_bytes().unwrap_or(0)
    }

    /// The current image's id; it is downloaded and made if need be, on this engine.
    pub fn ensure(&self, engine: Option<Engine>, progress: &dyn fetch::Progress) -> Result<String> {
        let engine = engine::choose(engine, self.places)?.engine;
        let vm = OnEngine { images: self, engine };
        let had_one = self.current()?.is_some();
        let current = self.store.ensure_base(&vm, progress).map_err(|error| set_up(&error))?.key;
        if !had_one {
            self.remove_old(&current);
        }
        Ok(current)
    }

    /// Removes the images that were made for older versions and that no sandbox needs. Nothing depends on it.
    fn remove_old(&self, current: &str) {
        let Ok(wanted) = self.wanted(Some(current)) else { return };
        match self.store.remove_unused(wanted) {
            Ok(removed) => tracing::info!(?removed, "Old images were removed"),
            Err(error) => tracing::warn!(%error, "Old images could not be removed"),
        }
    }

    /// Whether an image is this one or that of a sandbox.
    fn wanted<'c>(&self, current: Option<&'c str>) -> Result<impl Fn(&str) -> bool + use<'c>> {
        let (sandboxes, unreadable) = Sandboxes::open(self.places)?.list()?;
        let images: Vec<String> = sandboxes.into_iter().map(|sandbox| sandbox.spec.image).collect();
        // A sandbox that cannot be read may need any.
        let any = !unreadable.is_empty();
        Ok(move |key: &str| any || current == Some(key) || images.iter().any(|image| image == key))
    }

    /// What lies in the cache and is of no use to this version or to any sandbox: images that nobody has used for a week,
    /// downloads of older versions, initramfs archives of older guests.
    pub fn old(&self) -> Result<Vec<Old>> {
        let current = self.current()?;
        let images = self.store.unused(self.wanted(current.as_deref())?).map_err(|error| set_up(&error))?;
        let mut old: Vec<Old> = images
            .into_iter()
            .map(|(key, path)| Old { what: format!("the image {key}"), files: vec![path] })
            .collect();
        let downloads = self.store.old_downloads().map_err(|error| set_up(&error))?;
        let initramfs = assets::old_initramfs(&self.places.cache);
        let leftovers = self.store.leftovers().map_err(|error| set_up(&error))?;
        if !leftovers.is_empty() {
            let what = "what is left of images whose making or deletion was broken off";
            old.push(Old { what: what.into(), files: leftovers });
        }
        for (what, files) in [("downloads", downloads), ("initramfs archives", initramfs)] {
            if !files.is_empty() {
                old.push(Old { what: format!("{} {what} of other versions", files.len()), files });
            }
        }
        Ok(old)
    }

    /// Removes what [`Self::old`] names, as far as it still is so.
    pub fn remove_all_old(&self) -> Result<()> {
        if let Some(current) = self.current()? {
            self.remove_old(&current);
        }
        self.store.remove_old_downloads().map_err(|error| set_up(&error))?;
        self.store.sweep().map_err(|error| set_up(&error))?;
        for path in assets::old_initramfs(&self.places.cache) {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::file("cannot delete", &path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What a sandbox with this image boots from.
    pub fn assets(&self, image: &str) -> Result<Assets> {
        let gone = || {
            Error::SetUp {
            why: "the base image of this sandbox is no longer in the cache".into(),
            hint: Some(
                "another viv made it with an image that is gone; viv rm deletes the sandbox, and viv run makes it anew"
                    .into(),
            ),
        }
        };
        let BaseImage { kernel, base, .. } = self.store.find(image).ok_or_else(gone)?;
        self.store.note_use(image);
        let initramfs = assets::initramfs(self.places, self.agent, &kernel.modules, &kernel.release)?;
        Ok(Assets { kernel: kernel.elf, initramfs, base: Some(base) })
    }
}

/// Whether the host's disk is full, whatever it was that could not be written.
fn is_full(error: &store::StoreError) -> bool {
    use store::StoreError as E;
    let sources = std::iter::successors(std::error::Error::source(error), |error| error.source());
    let full =
        |error: &(dyn std::error::Error + 'static)| error.downcast_ref().is_some_and(crate::error::is_full);
    matches!(error, E::NoSpace { .. } | E::Build(BuildError::NoRoom)) || sources.into_iter().any(full)
}

fn set_up(error: &store::StoreError) -> Error {
    let hint = match error {
        full if is_full(full) => "free some space, or point XDG_CACHE_HOME to a larger disk",
        store::StoreError::Fetch(fetch::FetchError::Network { .. }) => {
            "check the network (http_proxy and https_proxy are followed) and run the same again: what was downloaded is kept"
        }
        store::StoreError::Fetch(_) => "what was downloaded is kept; run the same again to go on",
        _ => "run the same again; viv -v says more",
    };
    Error::SetUp { why: sentence(error), hint: Some(hint.into()) }
}

/// Runs the image's build on one engine.
struct OnEngine<'i> {
    images: &'i Images<'i>,
    engine: Engine,
}

impl BuilderVm for OnEngine<'_> {
    fn run(&self, boot: &Boot<'_>, line: &mut dyn FnMut(&str)) -> std::result::Result<(), VmError> {
        let kernel = boot.kernel;
        let in_words = |error: Error| match &error {
            Error::File { source, .. } | Error::Host { source, .. } if crate::error::is_full(source) => {
                VmError::NoRoom
            }
            other => VmError::Other(other.to_string()),
        };
        let initramfs =
            assets::initramfs(self.images.places, self.images.agent, &kernel.modules, &kernel.release)
                .map_err(in_words)?;
        let base = boot.disks.iter().find(|disk| disk.serial == agent_proto::abi::serial::BASE);
        let assets =
            Assets { kernel: kernel.elf.clone(), initramfs, base: base.map(|disk| disk.file.clone()) };
        let disks: Vec<JobDisk> = boot
            .disks
            .iter()
            .filter(|disk| disk.serial != agent_proto::abi::serial::BASE)
            .map(|disk| JobDisk {
                serial: disk.serial.into(),
                file: disk.file.clone(),
                read_only: disk.read_only,
            })
            .collect();
        let host =
            std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1));
        let job = Job {
            assets: &assets,
            disks: &disks,
            words: boot.cmdline.split_ascii_whitespace().map(str::to_owned).collect(),
            engine: self.engine,
            cpus: boot.cpus.clamp(1, host),
            memory: u64::from(boot.memory_mib) << 20,
            link: None,
        };
        build_vm::run(&job, line).map_err(in_words)
    }
}

#[cfg(test)]
mod tests;
