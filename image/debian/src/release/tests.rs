//! Release files signed by keys that each test makes for itself.

use std::sync::OnceLock;

use pgp::composed::{
    ArmorOptions, EncryptionCaps, KeyType, SecretKeyParamsBuilder, SignedPublicKey, SignedSecretKey,
    SubkeyParamsBuilder,
};
use pgp::types::Password;
use rand08::thread_rng;

use super::*;

const TEXT: &str = "Origin: Debian\nSuite: stable\nCodename: trixie\nDate: Sat, 12 Sep 2026 07:55:41 UTC\n\
    Valid-Until: Sat, 19 Sep 2026 07:55:41 UTC\nAcquire-By-Hash: yes\nSHA256:\n \
    e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855        0 main/binary-amd64/Packages.xz\n \
    nonsense 7 main/other\n";

fn new_key() -> SignedSecretKey {
    let mut subkey = SubkeyParamsBuilder::default();
    subkey.key_type(KeyType::Ed25519Legacy).can_sign(true).can_encrypt(EncryptionCaps::None);
    SecretKeyParamsBuilder::default()
        .key_type(KeyType::Ed25519Legacy)
        .can_certify(true)
        .can_sign(true)
        .primary_user_id("Test <test@example.org>".to_owned())
        .subkeys(vec![subkey.build().unwrap()])
        .build()
        .unwrap()
        .generate(thread_rng())
        .unwrap()
}

/// One key for all tests: making one takes a while.
fn key() -> &'static SignedSecretKey {
    static KEY: OnceLock<SignedSecretKey> = OnceLock::new();
    KEY.get_or_init(new_key)
}

fn keyring(key: &SignedSecretKey) -> Keyring {
    let public = SignedPublicKey::from(key.clone()).to_armored_string(ArmorOptions::default()).unwrap();
    Keyring::from_armored([public.as_str()]).unwrap()
}

fn sign(text: &str) -> String {
    let message =
        CleartextSignedMessage::sign(thread_rng(), text, &key().primary_key, &Password::empty()).unwrap();
    message.to_armored_string(ArmorOptions::default()).unwrap()
}

fn sign_with_subkey(text: &str) -> String {
    let subkey = &key().secret_subkeys[0].key;
    let message = CleartextSignedMessage::sign(thread_rng(), text, subkey, &Password::empty()).unwrap();
    message.to_armored_string(ArmorOptions::default()).unwrap()
}

fn at(date: &str) -> SystemTime {
    parse_date(date).unwrap()
}

const IN_TIME: &str = "Sun, 13 Sep 2026 00:00:00 UTC";

#[test]
fn a_signed_release_is_believed() {
    for signed in [sign(TEXT), sign_with_subkey(TEXT)] {
        let release = Release::verify(&signed, "trixie", &keyring(key()), at(IN_TIME)).unwrap();
        assert!(release.by_hash);
        assert_eq!(release.file("main/binary-amd64/Packages.xz"), Some((Digest::sha256_of(b""), 0)));
        assert_eq!(release.file("main/other"), None);
    }
}

#[test]
fn a_changed_text_is_not() {
    let signed = sign(TEXT);
    for (from, to) in [("Debian", "Debiam"), ("e3b0", "e3b1"), ("19 Sep", "29 Sep")] {
        let result = Release::verify(&signed.replacen(from, to, 1), "trixie", &keyring(key()), at(IN_TIME));
        assert!(matches!(result, Err(ReleaseError::Untrusted)), "{from}: {result:?}");
    }
    // Text around the signed part is no part of it.
    for changed in [format!("Codename: evil\n{signed}"), format!("{signed}Codename: evil\n")] {
        assert!(Release::verify(&changed, "trixie", &keyring(key()), at(IN_TIME)).is_err());
    }
    assert!(Release::verify(TEXT, "trixie", &keyring(key()), at(IN_TIME)).is_err(), "not signed at all");
}

#[test]
fn a_stranger_is_not_believed() {
    let result = Release::verify(&sign(TEXT), "trixie", &keyring(&new_key()), at(IN_TIME));
    assert!(matches!(result, Err(ReleaseError::Untrusted)));
    let result = Release::verify(&sign(TEXT), "trixie", &Keyring::debian().unwrap(), at(IN_TIME));
    assert!(matches!(result, Err(ReleaseError::Untrusted)));
}

#[test]
fn another_suite_and_other_times_are_refused() {
    let verify = |suite, now| Release::verify(&sign(TEXT), suite, &keyring(key()), at(now));
    assert!(matches!(verify("bookworm", IN_TIME), Err(ReleaseError::OtherSuite { .. })));
    assert!(matches!(verify("trixie", "Sun, 20 Sep 2026 00:00:00 UTC"), Err(ReleaseError::Expired { .. })));
    assert!(matches!(verify("trixie", "Tue, 08 Sep 2026 00:00:00 UTC"), Err(ReleaseError::NotYet { .. })));
}

#[test]
fn debians_own_release_is_believed() {
    // The release of Debian 13.7 as the archive had it in November 2026; it has no Valid-Until.
    let text = include_str!("../../tests/data/InRelease-trixie-13.7");
    let release =
        Release::verify(text, "trixie", &Keyring::debian().unwrap(), at("Sat, 21 Nov 2026 00:00:00 UTC"))
            .unwrap();
    assert_eq!(release.file("main/binary-amd64/Packages.xz").unwrap().1, 9_678_380);
    let changed = text.replacen(" 9678380 main/binary-amd64", " 9678381 main/binary-amd64", 1);
    assert!(Release::verify(&changed, "trixie", &Keyring::debian().unwrap(), SystemTime::now()).is_err());
}

#[test]
fn dates_are_what_date_says() {
    // date -u -d '2026-09-12 07:55:41' +%s
    assert_eq!(at("Sat, 12 Sep 2026 07:55:41 UTC"), UNIX_EPOCH + Duration::from_secs(1_789_199_741));
    assert_eq!(at("Thu, 29 Feb 2024 00:00:00 UTC"), UNIX_EPOCH + Duration::from_secs(1_709_164_800));
    for bad in [
        "",
        "Sat, 12 Sep 2026",
        "Sat, 12 Foo 2026 07:55:41 UTC",
        "Sat, 12 Sep 2026 07:55:41 CET",
        "12 Sep 99999999999999 0:0:0 UTC",
    ] {
        assert!(parse_date(bad).is_none(), "{bad}");
    }
}
