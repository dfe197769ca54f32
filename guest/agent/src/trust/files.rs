//! The files of the guest's trust store, as Debian's ca-certificates lays them out.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::Certificate;
use crate::fail::{Doing, Failure, Outcome};
use crate::mounts::make_dir;

/// What the names of our files begin with. What is called so is ours to take away.
pub(super) const OURS: &str = "vivarium-";
/// A bundle larger than this is not touched, in bytes. Debian's has 220 KiB.
const BUNDLE_LIMIT: u64 = 16 << 20;
/// The most certificates whose subjects have one hash.
const SAME_HASH: u32 = 64;

/// The links in `/etc/ssl/certs` that came and went.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) added: Vec<PathBuf>,
    pub(super) removed: Vec<PathBuf>,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

/// Makes the store below `root` hold these certificates of ours and no others of ours. What the guest trusts by itself stays, even where it is also
/// among these.
pub(super) fn install(root: &Path, wanted: &[Certificate]) -> Outcome<Changes> {
    let local = super::local_folder(root);
    let store = root.join("etc/ssl/certs");
    let mut changes = Changes::default();
    let old = ours_in(&local);
    if wanted.is_empty() && old.is_empty() {
        return Ok(changes);
    }
    make_dir(&local)?;
    make_dir(&store)?;
    let bundle_path = store.join("ca-certificates.crt");
    let bundle = read_bundle(&bundle_path)?;
    let mut text = bundle.clone();

    for name in old.iter().filter(|name| !wanted.iter().any(|one| one.name() == **name)) {
        let file = local.join(format!("{name}.crt"));
        let pem = fs::read_to_string(&file).unwrap_or_default();
        if pem.starts_with("-----BEGIN") {
            text = text.replace(&pem, "");
        }
        let link = store.join(format!("{name}.pem"));
        unlink_hashes(&store, &format!("{name}.pem"));
        // What is missing need not be taken away.
        let _ = fs::remove_file(&link);
        fs::remove_file(&file).doing(format_args!("Cannot remove {}", file.display()))?;
        changes.removed.push(link);
    }
    for one in wanted {
        let (name, pem) = (one.name(), one.pem());
        let known = text.contains(&pem);
        if known && !old.contains(&name) {
            continue;
        }
        if !known {
            text.push_str(&pem);
        }
        if add(root, &store, one, &pem)? {
            changes.added.push(store.join(format!("{name}.pem")));
        }
    }
    if text != bundle {
        super::replace(&bundle_path, text.as_bytes(), 0o644)
            .doing("Cannot write the bundle of certificates")?;
    }
    Ok(changes)
}

/// The names, without their endings, of what is ours in the folder of local certificates.
fn ours_in(local: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(local).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_str().and_then(|name| name.strip_suffix(".crt"));
        names.extend(name.filter(|name| name.starts_with(OURS)).map(str::to_owned));
    }
    names
}

/// Its content with the end of the last line there; empty where there is none.
fn read_bundle(path: &Path) -> Outcome<String> {
    match fs::metadata(path) {
        Ok(data) if data.len() > BUNDLE_LIMIT => {
            return Err(Failure::new("The bundle of certificates is too large to be added to"));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        _ => {}
    }
    let mut text = fs::read_to_string(path).doing("Cannot read the bundle of certificates")?;
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// The certificate's file and its two links. Returns whether any of it was missing.
fn add(root: &Path, store: &Path, one: &Certificate, pem: &str) -> Outcome<bool> {
    let name = one.name();
    let file = super::local_folder(root).join(format!("{name}.crt"));
    let mut new = false;
    if !fs::read(&file).is_ok_and(|old| old == pem.as_bytes()) {
        super::replace(&file, pem.as_bytes(), 0o644)
            .doing(format_args!("Cannot write {}", file.display()))?;
        new = true;
    }
    let link = format!("{name}.pem");
    // As seen from inside, whatever `root` is.
    let target = super::local_folder(Path::new("/")).join(format!("{name}.crt"));
    if !fs::read_link(store.join(&link)).is_ok_and(|old| old == target) {
        let _ = fs::remove_file(store.join(&link));
        symlink(&target, store.join(&link)).doing(format_args!("Cannot link {link}"))?;
        new = true;
    }
    for number in 0..SAME_HASH {
        let hashed = store.join(format!("{:08x}.{number}", one.subject_hash()));
        match symlink(&link, &hashed) {
            Ok(()) => return Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                if fs::read_link(&hashed).is_ok_and(|old| old == Path::new(&link)) {
                    return Ok(new);
                }
            }
            Err(e) => return Err(Failure::new(format!("Cannot link {}: {e}", hashed.display()))),
        }
    }
    Err(Failure::new("Too many certificates have the same hash"))
}

/// Takes the hashed links to `target` away. OpenSSL stops at the first number that is missing, so the last one of the same hash moves into the gap.
fn unlink_hashes(store: &Path, target: &str) {
    for entry in fs::read_dir(store).into_iter().flatten().flatten() {
        let path = entry.path();
        if !fs::read_link(&path).is_ok_and(|old| old == Path::new(target)) || fs::remove_file(&path).is_err()
        {
            continue;
        }
        let name = entry.file_name();
        let Some((hash, number)) = name.to_str().and_then(|name| name.split_once('.')) else { continue };
        let Ok(number) = number.parse::<u32>() else { continue };
        let numbers = number.saturating_add(1)..SAME_HASH;
        let last = numbers.map(|n| store.join(format!("{hash}.{n}"))).take_while(|p| p.is_symlink()).last();
        if let Some(last) = last {
            // If it stays where it is, it is not found: no more is lost.
            let _ = fs::rename(last, &path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::certificate::tests::{SAMPLES, der_of};
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn sample(number: usize) -> Certificate {
        Certificate::parse(&der_of(SAMPLES[number].0)).expect("a certificate")
    }

    fn listing(root: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(root.join("etc/ssl/certs"))
            .expect("the store")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
            .collect();
        names.sort();
        names
    }

    const BASE: &str = "-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n";

    fn guest() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(root.path().join("etc/ssl/certs")).expect("a folder");
        fs::write(bundle(root.path()), BASE).expect("written");
        root
    }

    fn bundle(root: &Path) -> PathBuf {
        root.join("etc/ssl/certs/ca-certificates.crt")
    }

    #[test]
    fn ours_are_added_once_and_leave_without_a_trace() {
        let root = guest();
        let root = root.path();
        let changes = install(root, &[sample(0), sample(1)]).expect("installed");
        assert_eq!((changes.added.len(), changes.removed.len()), (2, 0));
        let text = fs::read_to_string(bundle(root)).expect("a bundle");
        assert_eq!(text, format!("{BASE}{}{}", sample(0).pem(), sample(1).pem()));
        let name = sample(0).name();
        let target =
            fs::read_link(root.join(format!("etc/ssl/certs/{:08x}.0", SAMPLES[0].1))).expect("a link");
        assert_eq!(target, Path::new(&format!("{name}.pem")));
        let pem = fs::read_link(root.join(format!("etc/ssl/certs/{name}.pem"))).expect("a link");
        assert_eq!(pem, Path::new(&format!("/usr/local/share/ca-certificates/{name}.crt")));

        assert!(install(root, &[sample(0), sample(1)]).expect("nothing to do").is_empty());
        let changes = install(root, &[sample(1)]).expect("one less");
        assert_eq!((changes.added.len(), changes.removed.len()), (0, 1));
        assert_eq!(fs::read_to_string(bundle(root)).expect("a bundle"), format!("{BASE}{}", sample(1).pem()));
        install(root, &[]).expect("none");
        assert_eq!(fs::read_to_string(bundle(root)).expect("a bundle"), BASE);
        assert_eq!(listing(root), ["ca-certificates.crt"]);
        assert_eq!(ours_in(&super::super::local_folder(root)), [""; 0]);
    }

    #[test]
    fn what_the_guest_trusts_by_itself_is_never_taken_away() {
        let root = guest();
        let root = root.path();
        let own = sample(0).pem();
        fs::write(bundle(root), &own).expect("written");
        assert!(install(root, &[sample(0)]).expect("nothing to do").is_empty());
        install(root, &[]).expect("none");
        assert_eq!(fs::read_to_string(bundle(root)).expect("a bundle"), own);
    }

    /// Debian's own program may have made the bundle anew, or a user the whole store.
    #[test]
    fn what_is_missing_comes_back() {
        let root = guest();
        let root = root.path();
        install(root, &[sample(0)]).expect("installed");
        let before = listing(root);
        fs::remove_file(root.join(format!("etc/ssl/certs/{:08x}.0", SAMPLES[0].1))).expect("removed");
        fs::remove_file(bundle(root)).expect("removed");
        assert_eq!(install(root, &[sample(0)]).expect("repaired").added.len(), 1);
        assert_eq!(listing(root), before);
        assert_eq!(fs::read_to_string(bundle(root)).expect("a bundle"), sample(0).pem());
    }

    /// The last two samples have one subject and two keys.
    #[test]
    fn hashes_that_are_taken_have_their_numbers_and_no_gaps() {
        let root = guest();
        let root = root.path();
        let (first, second) = (SAMPLES.len() - 2, SAMPLES.len() - 1);
        let hash = SAMPLES[first].1;
        assert_eq!(hash, SAMPLES[second].1);
        install(root, &[sample(first), sample(second)]).expect("installed");
        let link = |n: u32| fs::read_link(root.join(format!("etc/ssl/certs/{hash:08x}.{n}"))).ok();
        let pem = |n: usize| Some(PathBuf::from(format!("{}.pem", sample(n).name())));
        assert_eq!((link(0), link(1), link(2)), (pem(first), pem(second), None));
        install(root, &[sample(second)]).expect("one less");
        assert_eq!((link(0), link(1)), (pem(second), None));
    }

    #[test]
    fn a_bundle_without_a_last_line_end_stays_readable() {
        let root = guest();
        fs::write(bundle(root.path()), BASE.trim_end()).expect("written");
        install(root.path(), &[sample(0)]).expect("installed");
        let text = fs::read_to_string(bundle(root.path())).expect("a bundle");
        assert_eq!(text, format!("{BASE}{}", sample(0).pem()));
        let mode = fs::metadata(bundle(root.path())).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
    }
}
