//! The folder of downloads: files named by their digest, and the partial ones on their way there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::client::Refusal;
use crate::{Client, Digest, FetchError, Meter, Progress, Unit};

/// How many transfers run at once.
const TRANSFERS: usize = 4;
/// How often wrong bytes are fetched again before the file counts as tampered with.
const WRONG_BYTES_LIMIT: u32 = 2;

/// A file to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Where it can be had; tried in this order while the earlier ones do not have it.
    pub urls: Vec<String>,
    /// What it must be.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What to call it in progress and messages.
    pub name: String,
}

/// What became of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Verified and at this path.
    Ready(PathBuf),
    /// None of its servers has it any more.
    Gone,
}

/// The content-addressed folder.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

/// The waits between attempts.
pub(crate) fn back_off() -> impl Iterator<Item = Duration> {
    [300, 1000, 2500, 5000, 10_000].into_iter().map(Duration::from_millis)
}

impl Cache {
    /// Opens the folder `dir`, made if it is not there.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(dir: &Path) -> Result<Self, FetchError> {
        std::fs::create_dir_all(dir).map_err(file_error("create", dir))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Where the content with this digest is, if it is.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.file_name())
    }

    /// How many bytes of `items` are still to be downloaded, judged by sizes only.
    #[must_use]
    pub fn missing_bytes(&self, items: &[Item]) -> u64 {
        items
            .iter()
            .map(|item| {
                let have = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
                let have = have(&self.path(&item.digest)).max(have(&self.partial(&item.digest)));
                item.size.saturating_sub(have)
            })
            .sum()
    }

    /// Brings every item into the cache, about four at once, and hands out their paths in the same order.
    /// Files that are there already are hashed again first: what was damaged since is fetched anew.
    ///
    /// # Errors
    /// The first failure that is not [`Outcome::Gone`]; what was downloaded until then stays.
    pub fn fetch_all(
        &self,
        client: &Client,
        items: &[Item],
        step: &str,
        progress: &dyn Progress,
    ) -> Result<Vec<Outcome>, FetchError> {
        let total = items.iter().map(|item| item.size).sum();
        let meter = Meter::new(progress, step, Unit::Bytes, total);
        let order = largest_first(items);
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let outcomes: Mutex<BTreeMap<usize, Outcome>> = Mutex::new(BTreeMap::new());
        let failure: Mutex<Option<FetchError>> = Mutex::new(None);

        std::thread::scope(|scope| {
            for _ in 0..TRANSFERS.min(items.len()) {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let Some(&index) = order.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                        let Some(item) = items.get(index) else { return };
                        match self.fetch(client, item, &meter) {
                            Ok(outcome) => {
                                unpoisoned(&outcomes).insert(index, outcome);
                            }
                            Err(error) => {
                                stop.store(true, Ordering::Relaxed);
                                unpoisoned(&failure).get_or_insert(error);
                            }
                        }
                    }
                });
            }
        });
        if let Some(error) = unpoisoned(&failure).take() {
            return Err(error);
        }
        meter.finish();
        let outcomes = std::mem::take(&mut *unpoisoned(&outcomes));
        Ok(outcomes.into_values().collect())
    }

    /// Downloads, whole ones and begun ones, that are none of `keep`.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn others(&self, keep: &[Digest]) -> Result<Vec<PathBuf>, FetchError> {
        let keep: std::collections::BTreeSet<String> = keep.iter().map(Digest::file_name).collect();
        let mut others = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(file_error("read", &self.dir))? {
            let entry = entry.map_err(file_error("read", &self.dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let ours = name.starts_with("sha256-") || name.starts_with("sha512-");
            if ours && !keep.contains(name.trim_end_matches(".part")) {
                others.push(entry.path());
            }
        }
        Ok(others)
    }

    /// Throws away [`Self::others`].
    ///
    /// # Errors
    /// If the folder cannot be read; a file that cannot be removed is left.
    pub fn retain(&self, keep: &[Digest]) -> Result<(), FetchError> {
        for path in self.others(keep)? {
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    }

    fn partial(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}.part", digest.file_name()))
    }

    /// One item, from the cache or the network.
    fn fetch(&self, client: &Client, item: &Item, meter: &Meter<'_>) -> Result<Outcome, FetchError> {
        let path = self.path(&item.digest);
        if file_is(&path, item)? {
            meter.skip(item.size);
            return Ok(Outcome::Ready(path));
        }
        for url in &item.urls {
            match self.download(client, item, url, meter) {
                Ok(()) => return Ok(Outcome::Ready(path)),
                Err(FetchError::Gone { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Outcome::Gone)
    }

    /// Downloads with resumption and retries until the bytes are right, then moves them into place.
    fn download(&self, client: &Client, item: &Item, url: &str, meter: &Meter<'_>) -> Result<(), FetchError> {
        let part = self.partial(&item.digest);
        let mut waits: Box<dyn Iterator<Item = Duration>> = Box::new(back_off());
        let mut wrong = 0;
        let mut counted = std::fs::metadata(&part).map_or(0, |meta| meta.len().min(item.size));
        meter.skip(counted);
        loop {
            let before = counted;
            let result = transfer(client, item, url, &part, meter, &mut counted);
            let reason = match result {
                Ok(()) if file_is(&part, item)? => {
                    let path = self.path(&item.digest);
                    return std::fs::rename(&part, &path).map_err(file_error("move into place", &path));
                }
                Ok(()) => {
                    meter.take_back(std::mem::take(&mut counted));
                    std::fs::remove_file(&part).map_err(file_error("remove", &part))?;
                    wrong += 1;
                    if wrong > WRONG_BYTES_LIMIT {
                        return Err(FetchError::Tampered { url: url.to_owned(), expected: item.digest });
                    }
                    continue;
                }
                Err(Broken::Refused(Refusal::Gone)) => return Err(FetchError::Gone { url: url.to_owned() }),
                Err(Broken::Refused(Refusal::Final(reason))) => {
                    return Err(FetchError::Network { url: url.to_owned(), reason });
                }
                Err(Broken::Refused(Refusal::BadRange)) => {
                    meter.take_back(std::mem::take(&mut counted));
                    let _ = std::fs::remove_file(&part);
                    "the server has no such range".to_owned()
                }
                Err(Broken::Refused(Refusal::Passing(reason)) | Broken::Network(reason)) => reason,
                Err(Broken::File(error)) => return Err(error),
            };
            if counted >= before.saturating_add(256 * 1024) {
                waits = Box::new(back_off()); // slow or shaky, but it moves
            }
            match waits.next() {
                Some(wait) => std::thread::sleep(wait),
                None => return Err(FetchError::Network { url: url.to_owned(), reason }),
            }
        }
    }
}

/// How a transfer ended early.
enum Broken {
    Refused(Refusal),
    Network(String),
    File(FetchError),
}

/// Appends what is missing to the partial file; `counted` is what the meter was told of this item.
fn transfer(
    client: &Client,
    item: &Item,
    url: &str,
    part: &Path,
    meter: &Meter<'_>,
    counted: &mut u64,
) -> Result<(), Broken> {
    let on_file = |what| move |source| Broken::File(file_error(what, part)(source));
    let mut file =
        File::options().create(true).truncate(false).write(true).open(part).map_err(on_file("create"))?;
    let have = file.metadata().map_err(on_file("read"))?.len();
    if have >= item.size && item.size > 0 {
        return Ok(()); // complete or wrong: the digest tells
    }
    let mut body = client.request(url, have).map_err(Broken::Refused)?;
    if body.start != have {
        meter.take_back(std::mem::take(counted));
        file.set_len(body.start).map_err(on_file("write"))?;
    }
    file.seek(SeekFrom::Start(body.start)).map_err(on_file("write"))?;
    let mut room = item.size.saturating_sub(body.start);
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let read = body.reader.read(&mut buffer).map_err(|error| Broken::Network(error.to_string()))?;
        if read == 0 {
            break;
        }
        file.write_all(buffer.get(..read).unwrap_or_default()).map_err(on_file("write"))?;
        let read = u64::try_from(read).unwrap_or(u64::MAX);
        *counted = counted.saturating_add(read);
        meter.add(read, &item.name);
        let Some(rest) = room.checked_sub(read) else {
            return Ok(()); // longer than promised: the digest will say so
        };
        room = rest;
    }
    if room > 0 {
        return Err(Broken::Network("the connection ended early".to_owned()));
    }
    Ok(())
}

/// Whether the file is there and is what the item says, judged by its bytes.
fn file_is(path: &Path, item: &Item) -> Result<bool, FetchError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(file_error("open", path)(source)),
    };
    if file.metadata().map_err(file_error("read", path))?.len() != item.size {
        return Ok(false);
    }
    let mut hasher = item.digest.hasher();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let read = file.read(&mut buffer).map_err(file_error("read", path))?;
        if read == 0 {
            return Ok(hasher.finish() == item.digest);
        }
        hasher.update(buffer.get(..read).unwrap_or_default());
    }
}

fn largest_first(items: &[Item]) -> Vec<usize> {
    let mut order: Vec<(u64, usize)> =
        items.iter().enumerate().map(|(index, item)| (item.size, index)).collect();
    order.sort_by(|a, b| b.cmp(a));
    order.into_iter().map(|(_, index)| index).collect()
}

fn file_error(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| FetchError::File { what, path, source }
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
