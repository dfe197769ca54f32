//! The host's root and what it signs.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use intercept::{CaError, INTERMEDIATE_DAYS, ROOT_DAYS, ROOT_FILE, RootCa};
use x509_parser::prelude::*;

const DAY: Duration = Duration::from_secs(86_400);

fn parse(der: &[u8]) -> X509Certificate<'_> {
    X509Certificate::from_der(der).expect("a certificate").1
}

#[test]
fn the_root_is_made_once_and_is_the_owners_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let inside = folder.path().join("ca");
    let first = RootCa::load_or_make(&inside, SystemTime::now()).expect("a root");
    let second = RootCa::load_or_make(&inside, SystemTime::now()).expect("the same root");
    assert_eq!(first.certificate_der(), second.certificate_der());
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&inside.join(ROOT_FILE)), 0o600);
    assert_eq!(mode(&inside), 0o700);
    let names: Vec<_> = std::fs::read_dir(&inside)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(names, [ROOT_FILE], "nothing half made is left");
    let certificate = parse(first.certificate_der());
    assert!(certificate.is_ca());
    assert_eq!(
        certificate.basic_constraints().expect("one").expect("there").value.path_len_constraint,
        Some(1)
    );
    assert!(first.certificate_pem().starts_with("-----BEGIN CERTIFICATE-----"));
    assert!(!format!("{first:?}").contains("PRIVATE"));
}

#[test]
fn many_at_once_get_the_same_root() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    let roots: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    RootCa::load_or_make(path, SystemTime::now()).expect("a root").certificate_der().to_vec()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(roots.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn a_root_that_soon_ends_is_made_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let now = SystemTime::now();
    let old = RootCa::load_or_make(folder.path(), now).expect("a root");
    let late = now + DAY * u32::try_from(ROOT_DAYS - 300).expect("fits");
    let new = RootCa::load_or_make(folder.path(), late).expect("a new root");
    assert_ne!(old.certificate_der(), new.certificate_der());
    let again = RootCa::load_or_make(folder.path(), late).expect("the new root");
    assert_eq!(again.certificate_der(), new.certificate_der());
}

#[test]
fn a_damaged_or_readable_root_is_named_and_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(ROOT_FILE);
    let whole = {
        RootCa::load_or_make(folder.path(), SystemTime::now()).expect("a root");
        std::fs::read_to_string(&path).expect("text")
    };
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).expect("chmod");
    let error = RootCa::load_or_make(folder.path(), SystemTime::now()).expect_err("others can read it");
    assert!(matches!(error, CaError::Exposed { mode: 0o644, .. }), "{error}");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("chmod");
    let other = {
        let elsewhere = tempfile::tempdir().expect("a folder");
        RootCa::load_or_make(elsewhere.path(), SystemTime::now())
            .expect("a root")
            .certificate_pem()
            .to_owned()
    };
    let mut mixed: serde_json::Value = serde_json::from_str(&whole).expect("JSON");
    mixed["certificate_pem"] = other.into();
    for spoilt in [
        String::new(),
        "{}".into(),
        whole.replace("vivarium-root-ca", "x"),
        whole[..whole.len() / 2].into(),
        mixed.to_string(),
    ] {
        std::fs::write(&path, &spoilt).expect("written");
        let error = RootCa::load_or_make(folder.path(), SystemTime::now()).expect_err("no root");
        assert!(matches!(error, CaError::Damaged { .. }), "{error}");
        assert!(!error.to_string().contains("PRIVATE"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).expect("text"), spoilt, "nothing is overwritten");
    }
    std::fs::remove_file(&path).expect("removed");
    std::os::unix::fs::symlink("/etc/hostname", &path).expect("a link");
    assert!(
        matches!(RootCa::load_or_make(folder.path(), SystemTime::now()), Err(CaError::File { .. })),
        "no link is followed"
    );
}

#[test]
fn an_intermediate_is_short_lived_signs_leaves_only_and_crosses_as_json() {
    let folder = tempfile::tempdir().expect("a folder");
    let now = SystemTime::now();
    let root = RootCa::load_or_make(folder.path(), now).expect("a root");
    let ca = root.issue("my \"box\"\n", now).expect("an intermediate");
    let certificate = parse(&ca.certificate);
    let parent = parse(&ca.root);
    assert_eq!(certificate.issuer(), parent.subject());
    assert!(certificate.verify_signature(Some(parent.public_key())).is_ok());
    assert_eq!(
        certificate.basic_constraints().expect("one").expect("there").value.path_len_constraint,
        Some(0)
    );
    let days = (certificate.validity().not_after.timestamp() - certificate.validity().not_before.timestamp())
        / 86_400;
    assert_eq!(days, i64::try_from(INTERMEDIATE_DAYS).expect("fits") + 1);
    let other = root.issue("other", now).expect("an intermediate");
    assert_ne!(ca.key.as_slice(), other.key.as_slice());
    let text = serde_json::to_string(&ca).expect("JSON");
    let again: intercept::IntermediateCa = serde_json::from_str(&text).expect("the same");
    assert_eq!(
        (again.certificate, again.key, again.not_after),
        (ca.certificate.clone(), ca.key.clone(), ca.not_after)
    );
    assert!(!format!("{ca:?}").contains("key"), "{ca:?}");
    let damaged = text.replace("\"key\":\"", "\"key\":\"!secret!");
    let error =
        serde_json::from_str::<intercept::IntermediateCa>(&damaged).expect_err("no base64").to_string();
    assert!(!error.contains("secret"), "{error}");
}
