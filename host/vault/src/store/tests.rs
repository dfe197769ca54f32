use super::*;
use crate::binding::Binding;
use crate::credentials::Destination;

const VALUE: &str = "ghp_REALREALREALREALREALREALREALREALREAL";

fn folders(root: &std::path::Path) -> Folders {
    Folders { data: root.join("data/secrets"), config: root.join("config") }
}

fn github(scope: Scope) -> Entry {
    Entry::of_service("github", scope, Source::Kept, false).unwrap()
}

fn nobody(_: &str) -> Result<Secret> {
    Err(Error::Locked)
}

fn text(text: &str) -> Secret {
    Secret::from(text.to_owned())
}

fn key_file() -> Keep {
    Keep::Files(Some(Protection::KeyFile))
}

/// What a server would get for the placeholder of `sandbox`.
fn sent(vault: &mut Vault, sandbox: &str) -> String {
    let variables = vault.environment(sandbox);
    let (_, holder) = variables.iter().find(|(name, _)| name == "GH_TOKEN").unwrap();
    let set = vault.resolve(sandbox, &mut nobody).unwrap().credentials;
    let (mut head, ()) =
        http::Request::get("/").header("authorization", holder).body(()).unwrap().into_parts();
    let to = Destination { host: "api.github.com", port: 443, tls: true };
    set.place(&to, &mut head, SystemTime::now()).unwrap();
    head.headers["authorization"].to_str().unwrap().to_owned()
}

/// All bytes of all files below a folder.
fn all_files(folder: &std::path::Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(all_files(&path));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found
}

#[test]
fn a_value_is_kept_and_found_again_and_in_no_file() {
    use std::os::unix::fs::MetadataExt;
    let root = tempfile::tempdir().unwrap();
    let folders = folders(root.path());
    let mut vault = Vault::open(&folders).unwrap();
    assert!(!vault.applies("box1") && vault.entries().is_empty());
    assert!(!vault.set(github(Scope::Global), Some(&text(VALUE)), key_file()).unwrap());
    let mut vault = Vault::open(&folders).unwrap();
    assert!(vault.applies("box1") && !vault.is_locked("box1"));
    assert_eq!(sent(&mut vault, "box1"), VALUE);
    assert_ne!(
        vault.environment("box1"),
        vault.environment("box2"),
        "each sandbox has placeholders of its own"
    );
    for (path, bytes) in all_files(root.path()) {
        assert!(memchr::memmem::find(&bytes, b"REALREAL").is_none(), "{}", path.display());
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o077, 0, "{}", path.display());
    }
    assert!(vault.storage().to_string().contains("vault.key: whoever reads both reads the values"));
}

#[test]
fn a_sandboxs_own_wins_and_goes_with_it() {
    let root = tempfile::tempdir().unwrap();
    let mut vault = Vault::open(&folders(root.path())).unwrap();
    let other = "ghp_OTHEROTHEROTHEROTHEROTHEROTHEROTHERO";
    vault.set(github(Scope::Global), Some(&text(VALUE)), key_file()).unwrap();
    let before = vault.environment("box1");
    vault.set(github(Scope::Sandbox("box1".into())), Some(&text(other)), key_file()).unwrap();
    assert_eq!(vault.environment("box1"), before, "sessions that run go on working");
    assert_eq!((sent(&mut vault, "box1").as_str(), sent(&mut vault, "box2").as_str()), (other, VALUE));
    assert_eq!(vault.remove_sandbox("box1").unwrap(), 1);
    assert_eq!(vault.remove_sandbox("box1").unwrap(), 0);
    assert_eq!(sent(&mut vault, "box1"), VALUE);
    assert_eq!(std::fs::read_dir(root.path().join("data/secrets/values")).unwrap().count(), 1);
}

#[test]
fn replacing_and_removing_leave_nothing_behind() {
    let root = tempfile::tempdir().unwrap();
    let mut vault = Vault::open(&folders(root.path())).unwrap();
    vault.set(github(Scope::Global), Some(&text("ghp_old-old-old-old")), key_file()).unwrap();
    let before = vault.environment("box1");
    assert!(vault.set(github(Scope::Global), Some(&text(VALUE)), key_file()).unwrap());
    assert_eq!(vault.environment("box1"), before);
    assert_eq!(sent(&mut vault, "box1"), VALUE);
    let values = root.path().join("data/secrets/values");
    assert_eq!(std::fs::read_dir(&values).unwrap().count(), 1);
    vault.remove(&Scope::Global, "github").unwrap();
    assert_eq!(std::fs::read_dir(&values).unwrap().count(), 0);
    assert!(matches!(vault.remove(&Scope::Global, "github"), Err(Error::UnknownSecret { .. })));
}

#[test]
fn a_passphrase_locks_reading_but_not_setting() {
    let root = tempfile::tempdir().unwrap();
    let folders = folders(root.path());
    let mut vault = Vault::open(&folders).unwrap();
    let keep = Keep::Files(Some(Protection::Passphrase(text("correct horse"))));
    vault.set(github(Scope::Global), Some(&text(VALUE)), keep).unwrap();
    let mut vault = Vault::open(&folders).unwrap();
    assert!(vault.is_locked("box1"));
    vault
        .set(
            Entry::of_service("openai", Scope::Global, Source::Kept, false).unwrap(),
            Some(&text("sk-other")),
            Keep::Files(None),
        )
        .unwrap();
    assert!(matches!(vault.resolve("box1", &mut nobody), Err(Error::Locked)));
    let error = vault.resolve("box1", &mut |_| Ok(text("wrong"))).unwrap_err();
    assert!(matches!(error, Error::WrongPassphrase), "{error}");
    let mut asked = 0;
    let resolved = vault
        .resolve("box1", &mut |_| {
            asked += 1;
            Ok(text("correct horse"))
        })
        .unwrap();
    assert_eq!((asked, resolved.problems.len(), resolved.credentials.names().len()), (1, 0, 2));
    assert!(!vault.is_locked("box1"));
    assert_eq!(vault.environment("box1").iter().filter(|(name, _)| name == "OPENAI_API_KEY").count(), 1);
}

#[test]
fn what_was_set_is_known_without_the_passphrase_and_the_rest_stays_unchanged() {
    let root = tempfile::tempdir().unwrap();
    let folders = folders(root.path());
    let keep = Keep::Files(Some(Protection::Passphrase(text("correct horse"))));
    Vault::open(&folders).unwrap().set(github(Scope::Global), Some(&text(VALUE)), keep).unwrap();
    let before = Vault::open(&folders).unwrap().resolve("box1", &mut |_| Ok(text("correct horse"))).unwrap();
    let mut vault = Vault::open(&folders).unwrap();
    let versions = vault.versions("box1");
    let openai = Entry::of_service("openai", Scope::Global, Source::Kept, false).unwrap();
    vault.set(openai, Some(&text("sk-other")), Keep::Files(None)).unwrap();
    assert_ne!(vault.versions("box1"), versions);
    let is_new = |entry: &Entry| entry.name == "openai";
    let some = vault.resolve_some("box1", &is_new, &mut nobody).unwrap();
    assert_eq!((&some.unchanged[..], &some.problems[..]), (&["github".to_owned()][..], &[][..]));
    let holder = &vault.environment("box1").into_iter().find(|(name, _)| name == "GH_TOKEN").unwrap().1;
    let given = |set: &Credentials| {
        let head = http::Request::get("/").header("authorization", holder).body(()).unwrap();
        let (mut head, ()) = head.into_parts();
        let to = Destination { host: "api.github.com", port: 443, tls: true };
        let outcome = set.place(&to, &mut head, SystemTime::now()).map(|_| ());
        outcome.map(|()| head.headers["authorization"].to_str().unwrap().to_owned())
    };
    assert!(given(&some.credentials).is_err(), "it has no value here");
    let whole = some.credentials.with_unchanged(&some.unchanged, &before.credentials);
    assert_eq!((given(&whole).unwrap().as_str(), whole.names().len()), (VALUE, 2));
    // Of what the sandbox does not have either, there is none.
    let none = some.credentials.with_unchanged(&some.unchanged, &Credentials::default());
    assert!(given(&none).is_err() && none.names().len() == 2);
    // What is locked is one problem, and who mistyped is asked once.
    let mut asked = 0;
    let mut wrong = |_: &str| {
        asked += 1;
        Ok(text("wrong"))
    };
    let all = Vault::open(&folders).unwrap().resolve_some("box1", &|_| true, &mut wrong).unwrap();
    assert_eq!((asked, all.failed.len(), all.problems.len()), (1, 2, 2));
}

#[test]
fn keys_that_have_ended_are_not_asked_for_without_a_pause() {
    let root = tempfile::tempdir().unwrap();
    let mut vault = Vault::open(&folders(root.path())).unwrap();
    let ended = r#"{"AccessKeyId":"AKIAIOSFODNN7EXAMPLE","SecretAccessKey":"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY","Expiration":"2020-01-01T00:00:00Z"}"#;
    let aws = |source| Entry::of_service("aws", Scope::Global, source, false).unwrap();
    vault.set(aws(Source::Kept), Some(&text(ended)), key_file()).unwrap();
    assert_eq!(vault.resolve("box1", &mut nobody).unwrap().next_refresh, None);
    vault.set(aws(Source::Command(format!("echo '{ended}'"))), None, key_file()).unwrap();
    let next = vault.resolve("box1", &mut nobody).unwrap().next_refresh.unwrap();
    assert!(next > SystemTime::now() + Duration::from_secs(30), "{next:?}");
}

#[test]
fn damaged_files_are_told_and_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let folders = folders(root.path());
    let mut vault = Vault::open(&folders).unwrap();
    vault.set(github(Scope::Global), Some(&text(VALUE)), key_file()).unwrap();
    vault
        .set(
            Entry::of_service("openai", Scope::Global, Source::Kept, false).unwrap(),
            Some(&text("sk-other")),
            key_file(),
        )
        .unwrap();
    let id = vault.entries().iter().find(|entry| entry.name == "github").unwrap().id.clone();
    let path = folders.data.join("values").join(format!("{id}.age"));
    let whole = std::fs::read(&path).unwrap();
    let mut cut = whole.clone();
    cut.truncate(whole.len() - 5);
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for bad in [b"".to_vec(), b"nonsense".to_vec(), cut, flipped] {
        std::fs::write(&path, &bad).unwrap();
        let resolved = Vault::open(&folders).unwrap().resolve("box1", &mut nobody).unwrap();
        assert_eq!(resolved.problems.len(), 1, "only that one");
        assert!(resolved.problems[0].contains("damaged"), "{}", resolved.problems[0]);
        assert_eq!(std::fs::read(&path).unwrap(), bad, "left alone");
    }
    std::fs::remove_file(&path).unwrap();
    let resolved = Vault::open(&folders).unwrap().resolve("box1", &mut nobody).unwrap();
    assert!(resolved.problems[0].contains("gone"), "{}", resolved.problems[0]);
    for (bad, word) in
        [(&b"{\"schema\": 1,"[..], "damaged"), (b"{\"schema\": 99}", "newer"), (b"[]", "damaged")]
    {
        std::fs::write(folders.index(), bad).unwrap();
        let error = Vault::open(&folders).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
        assert!(vault.set(github(Scope::Global), Some(&text(VALUE)), key_file()).is_err());
        assert_eq!(std::fs::read(folders.index()).unwrap(), bad, "nothing is lost");
    }
}

#[test]
fn a_key_that_others_can_read_or_that_is_gone_is_told() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().unwrap();
    let folders = folders(root.path());
    let mut vault = Vault::open(&folders).unwrap();
    vault.set(github(Scope::Global), Some(&text(VALUE)), key_file()).unwrap();
    let key = folders.config.join("vault.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let problems = Vault::open(&folders).unwrap().resolve("box1", &mut nobody).unwrap().problems;
    assert!(problems[0].contains("may be read or changed by others (mode 644)"), "{problems:?}");
    std::fs::remove_file(&key).unwrap();
    let problems = Vault::open(&folders).unwrap().resolve("box1", &mut nobody).unwrap().problems;
    assert!(problems[0].contains("it is gone"), "{problems:?}");
}

#[test]
fn an_index_that_was_changed_sends_no_value_elsewhere() {
    let root = tempfile::tempdir().unwrap();
    let folders = folders(root.path());
    let mut vault = Vault::open(&folders).unwrap();
    vault.set(github(Scope::Global), Some(&text(VALUE)), key_file()).unwrap();
    let index = std::fs::read_to_string(folders.index()).unwrap();
    std::fs::write(folders.index(), index.replace("\"api.github.com\"", "\"evil.example\"")).unwrap();
    let resolved = Vault::open(&folders).unwrap().resolve("box1", &mut nobody).unwrap();
    assert!(resolved.problems[0].contains("binding"), "{:?}", resolved.problems);
    assert!(!resolved.credentials.to_wire().unwrap().contains("UkVBTFJFQUx"));
}

#[test]
fn commands_are_cached_and_asked_again() {
    let root = tempfile::tempdir().unwrap();
    let count = root.path().join("count");
    let command =
        format!("echo x >> {0}; wc -l < {0} | tr -d ' ' | sed s/^/ghp_value-number-/", count.display());
    let folders = folders(root.path());
    let mut vault = Vault::open(&folders).unwrap();
    let mut entry = Entry::of_service("github", Scope::Global, Source::Command(command), false).unwrap();
    vault.verify(&entry).unwrap();
    vault.set(entry.clone(), None, key_file()).unwrap();
    assert_eq!(sent(&mut vault, "box1"), "ghp_value-number-2");
    assert_eq!(sent(&mut vault, "box1"), "ghp_value-number-2");
    assert!(vault.resolve("box1", &mut nobody).unwrap().next_refresh.unwrap() > SystemTime::now());
    entry.refresh = Refresh::OnDemand;
    vault.set(entry.clone(), None, key_file()).unwrap();
    assert_eq!(
        (sent(&mut vault, "box1").as_str(), sent(&mut vault, "box1").as_str()),
        ("ghp_value-number-3", "ghp_value-number-4")
    );
    entry.source = Source::Command("exit 7".into());
    assert!(vault.verify(&entry).is_err());
    vault.set(entry, None, key_file()).unwrap();
    let problems = vault.resolve("box1", &mut nobody).unwrap().problems;
    assert!(problems[0].contains("exit code 7"), "{problems:?}");
    assert!(!folders.data.join("values").exists(), "nothing of it is kept");
}

#[test]
fn signing_in_is_kept_for_that_sandbox() {
    let root = tempfile::tempdir().unwrap();
    let folders = folders(root.path());
    let mut vault = Vault::open(&folders).unwrap();
    let entry = Entry::of_service("anthropic", Scope::Global, Source::SignIn, false).unwrap();
    vault.set(entry, None, key_file()).unwrap();
    assert!(vault.environment("box1").is_empty());
    let set = vault.resolve("box1", &mut nobody).unwrap().credentials;
    assert!(set.is_bound("console.anthropic.com", 443) && set.is_bound("api.anthropic.com", 443));
    let to = Destination { host: "console.anthropic.com", port: 443, tls: true };
    let (mut head, ()) = http::Request::post("/v1/oauth/token").body(()).unwrap().into_parts();
    let crate::Body::Token(exchange) = set.place(&to, &mut head, SystemTime::now()).unwrap().body else {
        panic!()
    };
    let answer = br#"{"access_token":"sk-ant-oat01-REALREALREALREALREAL","refresh_token":"sk-ant-ort01-REALREALREAL","expires_in":3600}"#;
    let kept = exchange.response(200, answer, SystemTime::now()).unwrap().unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&kept.body).unwrap();
    let sentinel = shown["access_token"].as_str().unwrap();
    vault.keep_grant("box1", &kept.grant).unwrap();
    for (sandbox, works) in [("box1", true), ("box2", false)] {
        let set = Vault::open(&folders).unwrap().resolve(sandbox, &mut nobody).unwrap().credentials;
        let (mut head, ()) = http::Request::get("/")
            .header("authorization", format!("Bearer {sentinel}"))
            .body(())
            .unwrap()
            .into_parts();
        let to = Destination { host: "api.anthropic.com", port: 443, tls: true };
        let outcome = set.place(&to, &mut head, SystemTime::now());
        assert_eq!(outcome.is_ok(), works, "{sandbox}");
        if works {
            assert_eq!(head.headers["authorization"], "Bearer sk-ant-oat01-REALREALREALREALREAL");
            let [(name, ends)] = &set.renewable()[..] else { panic!("one login") };
            assert!(*ends > SystemTime::now() + Duration::from_secs(3000));
            assert!(set.refresh(name).is_some());
        }
    }
    assert!(
        all_files(root.path()).iter().all(|(_, bytes)| memchr::memmem::find(bytes, b"REALREAL").is_none())
    );
    vault.remove_sandbox("box1").unwrap();
    assert_eq!(std::fs::read_dir(folders.data.join("values")).unwrap().count(), 0);
}

#[test]
fn git_gets_the_placeholder_from_its_own_settings() {
    let root = tempfile::tempdir().unwrap();
    let mut vault = Vault::open(&folders(root.path())).unwrap();
    vault.set(github(Scope::Global), Some(&text(VALUE)), key_file()).unwrap();
    let variables = vault.environment("box1");
    let holder = &variables.iter().find(|(name, _)| name == "GITHUB_TOKEN").unwrap().1;
    let output = std::process::Command::new("git")
        .args(["credential", "fill"])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", root.path())
        .env("GIT_TERMINAL_PROMPT", "0")
        .envs(variables.iter().cloned())
        .stdin({
            let path = root.path().join("question");
            std::fs::write(&path, "protocol=https\nhost=github.com\n\n").unwrap();
            std::fs::File::open(path).unwrap()
        })
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        said.contains("username=x-access-token\n") && said.contains(&format!("password={holder}\n")),
        "{said} {output:?}"
    );
}

#[test]
fn aws_keys_have_many_forms() {
    let of = |given: &str| aws_keys(&text(given));
    let (id, key) = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
    for given in [
        format!("{id}\n{key}\n"),
        format!("{id}\r\n{key}\r\ntoken-token\r\n"),
        format!("export AWS_SECRET_ACCESS_KEY={key}\nexport AWS_ACCESS_KEY_ID={id}"),
        format!(
            r#"{{"Version":1,"AccessKeyId":"{id}","SecretAccessKey":"{key}","SessionToken":"t","Expiration":"2030-01-01T00:00:00+00:00"}}"#
        ),
    ] {
        let (keys, _) = of(&given).unwrap();
        assert_eq!((keys.key_id.expose(), keys.secret.expose()), (id.as_bytes(), key.as_bytes()), "{given}");
    }
    let (keys, ends) = of(&format!(r#"{{"AccessKeyId":"{id}","SecretAccessKey":"{key}","SessionToken":"t","Expiration":"2030-01-01T00:00:00Z"}}"#)).unwrap();
    assert!(keys.session_token.is_some() && ends.is_some());
    for bad in ["", "AKIA", id, "{}", "{", &format!("{id}\n{key}\na\nb"), &format!("{id} {key}")] {
        let error = of(bad).unwrap_err().to_string();
        assert!(!error.contains("wJalr"), "{error}");
    }
}

#[test]
fn what_a_secret_cannot_be_is_told() {
    let custom = |name: &str, env: &[&str], hosts: &[&str]| {
        let binding = crate::Binding {
            hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            ..crate::Binding::default()
        };
        let wish = Custom {
            binding,
            env: env.iter().map(|&variable| variable.to_owned()).collect(),
            ..Custom::default()
        };
        Entry::custom(name, Scope::Global, Source::Kept, wish)
    };
    assert!(custom("mine", &["MY_TOKEN"], &["a.example"]).is_ok());
    assert!(custom("github", &["X"], &["a.example"]).unwrap_err().to_string().contains("viv secret set"));
    for (name, env) in [
        ("", "X"),
        ("a b", "X"),
        ("\u{1b}[2J", "X"),
        ("-x", "X"),
        ("mine", "1X"),
        ("mine", "A=B"),
        ("mine", ""),
    ] {
        let error = custom(name, &[env], &["a.example"]).unwrap_err().to_string();
        assert!(!error.chars().any(char::is_control), "{error:?}");
    }
    assert!(custom("mine", &["X"], &[]).is_err(), "no host");
    assert!(custom("mine", &[], &["a.example"]).is_err(), "no variable and no place");
    let error = Entry::of_service("gihub", Scope::Global, Source::Kept, false).unwrap_err();
    assert_eq!(error.hint().unwrap(), "did you mean github?  viv secret set --help names all");
    assert!(Entry::of_service("npm", Scope::Global, Source::SignIn, false).is_err());
    let entry = github(Scope::Global);
    for bad in ["", "a\nb", "a\0b", " a", "a ", "\u{e4}", &"x".repeat(MAX_VALUE + 1)] {
        assert!(checked_value(&entry, &text(bad)).is_err(), "{bad:?}");
    }
}

#[test]
fn two_programs_that_set_at_once_lose_nothing() {
    let root = tempfile::tempdir().unwrap();
    let folders = folders(root.path());
    Vault::open(&folders).unwrap().set(github(Scope::Global), Some(&text(VALUE)), key_file()).unwrap();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let folders = &folders;
            scope.spawn(move || {
                let mut vault = Vault::open(folders).unwrap();
                let entry = github(Scope::Sandbox(format!("box{number}")));
                vault.set(entry, Some(&text(VALUE)), Keep::Files(None)).unwrap();
            });
        }
    });
    assert_eq!(Vault::open(&folders).unwrap().entries().len(), 9);
}

/// A secret of the user's own with this variable.
fn custom(name: &str, variable: &str, scope: Scope) -> Entry {
    let binding = Binding { hosts: vec!["api.example.com".parse().unwrap()], ..Binding::default() };
    let custom = Custom { binding, env: vec![variable.to_owned()], ..Custom::default() };
    Entry::custom(name, scope, Source::Kept, custom).unwrap()
}

#[test]
fn a_variable_is_one_secrets_of_all_or_of_one_sandbox() {
    let root = tempfile::tempdir().unwrap();
    let folders = folders(root.path());
    let mut vault = Vault::open(&folders).unwrap();
    let mut set = |entry: Entry| vault.set(entry, Some(&text("a-value-of-it")), key_file());
    let own = || Scope::Sandbox("box1".into());
    set(custom("one", "ONE", Scope::Global)).unwrap();
    set(github(Scope::Global)).unwrap();
    for (entry, variable, by, hint) in [
        (custom("two", "ONE", Scope::Global), "ONE", "one", "give this one another --env"),
        (custom("two", "GH_TOKEN", Scope::Global), "GH_TOKEN", "github", "viv secret rm github"),
    ] {
        let error = set(entry).unwrap_err();
        let said = format!(
            "the variable {variable} has the placeholder of the secret \"{by}\" for all sandboxes already"
        );
        assert_eq!(error.to_string(), said);
        assert!(error.hint().unwrap().contains(hint), "{:?}", error.hint());
    }
    assert!(set(custom("one", "ONE", Scope::Global)).unwrap(), "the same one is replaced");
    // A sandbox's own takes the global one's place there, by that name or another, and not a second one of its own.
    set(custom("aaa", "ONE", own())).unwrap();
    set(custom("one", "OTHER", own())).unwrap();
    set(custom("zzz", "TWO", Scope::Sandbox("box2".into()))).unwrap();
    set(custom("zzz", "GH_TOKEN", own())).unwrap();
    let error = set(custom("bbb", "ONE", own())).unwrap_err();
    assert!(error.to_string().contains("of the secret \"aaa\" for that sandbox"), "{error}");
    assert!(error.hint().unwrap().contains("viv secret rm --sandbox NAME aaa"), "{:?}", error.hint());
    let error = set(github(own())).unwrap_err();
    assert!(error.hint().unwrap().starts_with("set zzz again with another --env"), "{:?}", error.hint());
    let holder = |vault: &Vault, name: &str, variable: &str| {
        let index = vault.index.as_ref().unwrap();
        let entry = index.entries.iter().find(|entry| entry.name == name).unwrap();
        let holder = entry.placeholders(&index.shape_key, "box1").value;
        vault.environment("box1").contains(&(variable.to_owned(), holder))
    };
    assert!(holder(&vault, "aaa", "ONE") && holder(&vault, "zzz", "GH_TOKEN"), "the sandbox's own");
    assert_eq!((vault.clashes("box1"), vault.clashes("box2")), (Vec::new(), Vec::new()));
    // An index that somebody else wrote.
    let index = std::fs::read_to_string(folders.index()).unwrap();
    std::fs::write(folders.index(), index.replace("\"TWO\"", "\"GH_TOKEN\"").replace("\"OTHER\"", "\"ONE\""))
        .unwrap();
    let vault = Vault::open(&folders).unwrap();
    let clash = Clash { taken: Taken::Variable("ONE".into()), kept: "one".into(), lost: "aaa".into() };
    assert_eq!((vault.clashes("box1"), vault.clashes("box2")), (vec![clash], Vec::new()));
    assert!(!holder(&vault, "aaa", "ONE"));
    // A value can be replaced nevertheless; a third one has no place.
    vault.check_taken(&custom("one", "ONE", own())).unwrap();
    assert!(vault.check_taken(&custom("bbb", "ONE", own())).is_err());
    // Of two for all, neither is named where the sandbox has one of its own.
    let index = std::fs::read_to_string(folders.index()).unwrap();
    std::fs::write(folders.index(), index.replace("\"GH_TOKEN\"", "\"ONE\"")).unwrap();
    let clashes = Vault::open(&folders).unwrap().clashes("box1");
    assert!(clashes.iter().all(|clash| clash.kept == "zzz"), "{clashes:?}");
}

#[test]
fn git_asks_one_secret_for_a_server() {
    let root = tempfile::tempdir().unwrap();
    let mut vault = Vault::open(&folders(root.path())).unwrap();
    let forge = |name, env: &[&str], scope| {
        let binding = Binding { hosts: vec!["git.example".parse().unwrap()], ..Binding::default() };
        let env = env.iter().map(ToString::to_string).collect();
        let custom = Custom { binding, env, git_user: Some("ci".into()), ..Custom::default() };
        Entry::custom(name, scope, Source::Kept, custom).unwrap()
    };
    let mut set = |entry| vault.set(entry, Some(&text("a-value-of-it")), key_file());
    set(forge("one", &[], Scope::Global)).unwrap();
    let error = set(forge("two", &["TOKEN"], Scope::Global)).unwrap_err();
    let said =
        "git at https://git.example has the placeholder of the secret \"one\" for all sandboxes already";
    assert_eq!(error.to_string(), said);
    assert!(
        error.hint().unwrap().starts_with("give this one --env in place of --git-user, or"),
        "{:?}",
        error.hint()
    );
    assert!(set(forge("one", &["OTHER"], Scope::Global)).unwrap(), "the same one is replaced");
    // A sandbox's own takes its place there: git asks the last helper, behind an empty one.
    set(forge("two", &[], Scope::Sandbox("box1".into()))).unwrap();
    assert_eq!(vault.clashes("box1"), Vec::new());
    let index = vault.index.as_ref().unwrap();
    for (sandbox, name) in [("box1", "two"), ("box2", "one")] {
        let entry = index.entries.iter().find(|entry| entry.name == name).unwrap();
        let variables = vault.environment(sandbox);
        let (_, last) = variables.iter().rfind(|(name, _)| name.starts_with("GIT_CONFIG_VALUE_")).unwrap();
        assert!(
            last.contains(&entry.placeholders(&index.shape_key, sandbox).value),
            "{sandbox}: {variables:?}"
        );
    }
}

#[test]
fn values_end_that_programs_give_and_no_others() {
    let root = tempfile::tempdir().unwrap();
    let mut vault = Vault::open(&folders(root.path())).unwrap();
    vault.set(github(Scope::Global), Some(&text(VALUE)), key_file()).unwrap();
    assert!(!vault.has_ends("box1"));
    let program = || Source::Command("echo a-value-of-it".into());
    let own = Scope::Sandbox("box1".into());
    let mut entry = Entry::of_service("openai", own.clone(), program(), false).unwrap();
    vault.set(entry.clone(), None, key_file()).unwrap();
    assert!(vault.has_ends("box1") && !vault.has_ends("box2"));
    entry.refresh = Refresh::OnDemand;
    vault.set(entry, None, key_file()).unwrap();
    assert!(!vault.has_ends("box1"));
    let mut aws = Entry::of_service("aws", own.clone(), program(), false).unwrap();
    aws.refresh = Refresh::OnDemand;
    vault.set(aws, None, key_file()).unwrap();
    assert!(vault.has_ends("box1"), "such keys say themselves when they end");
    vault.remove(&own, "aws").unwrap();
    assert!(!vault.has_ends("box1"));
}

#[test]
fn short_values_are_not_masked() {
    assert!(!crate::mask::is_masked(&text("x")) && !crate::mask::is_masked(&text("1234567")));
    assert!(crate::mask::is_masked(&text("12345678")));
}
