//! `viv secret` as a program: what it keeps, lists and refuses. No sandbox runs for it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{Case, Said, Terminal, Verdict, World, ensure, eventually, say};
use serde_json::{Value, json};

use crate::Named;

pub(crate) const CASES: &[Named] = &[
    ("secrets_of_every_kind_and_source_are_kept_listed_and_removed", kept),
    ("variables_of_the_shell_are_imported", imported),
    ("values_and_passphrases_are_asked_for_and_not_shown", asked),
    ("a_mistake_with_secrets_is_one_sentence_and_loses_nothing", mistakes),
];

/// It is in every value and in nothing else.
const MARK: &str = "hush";
pub(super) const TOKEN: &str = "hush-0123456789-abcdefghij";
const AWS: [&str; 2] = ["AKIAHUSHHUSHHUSHHUSH", "hushhushhushhushhushhushhushhushhush1234"];
/// A sandbox that secrets can be for; it never runs.
pub(super) const NAME: &str = "shell-keeper";

/// What 1Password's, AWS's and Vault's programs say to the words that their documentation has for this; no others are understood.
const PROGRAMS: [(&str, &str, &str); 3] = [
    ("op", "read --no-newline op://Work/GitLab/token", "hush-from-op"),
    (
        "aws",
        "secretsmanager get-secret-value --region eu-west-1 --secret-id arn:aws:secretsmanager:eu-west-1:123456789012:secret:ci-AbCdEf --query SecretString --output text",
        r#"{"user":"ci","key":"hush-from-aws"}"#,
    ),
    ("vault", "kv get -field=token secret/ci", "hush-from-vault"),
];

/// A user's shell with secrets of its own.
pub(super) struct Shell<'a> {
    world: &'a World,
    home: tempfile::TempDir,
    variables: Vec<(&'static str, OsString)>,
}

impl<'a> Shell<'a> {
    pub(super) fn new(world: &'a World) -> Result<Self, Verdict> {
        let home = tempfile::tempdir_in("/var/tmp")?;
        let mut shell = Self { world, home, variables: Vec::new() };
        let programs = shell.home.path().join("bin");
        std::fs::create_dir(&programs)?;
        for (name, words, output) in PROGRAMS {
            let path = programs.join(name);
            std::fs::write(
                &path,
                format!(
                    "#!/bin/sh\n[ \"$*\" = '{words}' ] || {{ echo hush >&2; exit 3; }}\necho '{output}'\n"
                ),
            )?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        }
        let rest = std::env::var_os("PATH").unwrap_or_default();
        let all = std::iter::once(programs).chain(std::env::split_paths(&rest));
        let path = std::env::join_paths(all).map_err(|error| Verdict::Wrong(error.to_string()))?;
        shell.set("PATH", path);
        shell.set("XDG_DATA_HOME", shell.home.path().join("data"));
        shell.set("XDG_CONFIG_HOME", shell.home.path().join("config"));
        Ok(shell)
    }

    pub(super) fn set(&mut self, name: &'static str, value: impl Into<OsString>) {
        self.variables.push((name, value.into()));
    }

    /// A file with a passphrase in it that the program is told of.
    fn set_passphrase(&mut self, text: &str) -> Case {
        let path = self.home.path().join("passphrase");
        std::fs::write(&path, text)?;
        self.set("VIV_VAULT_PASSPHRASE_FILE", path);
        Ok(())
    }

    pub(super) fn secrets(&self) -> PathBuf {
        self.home.path().join("data/vivarium/secrets")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.world.viv(&self.world.project("nothing"), words);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// What it says; never a value.
    pub(super) fn said(&self, words: &[&str], input: &str) -> Result<Said, Verdict> {
        let said = say(self.command(words), input.as_bytes())?;
        let all = format!("{} {}", said.text(), said.err).to_ascii_lowercase();
        ensure(!all.contains(MARK), format!("{words:?}: {said:?}"))?;
        let is_plain = said.err.chars().all(|c| c == '\n' || !c.is_control());
        ensure(is_plain, format!("{words:?}: {said:?}"))?;
        Ok(said)
    }

    pub(super) fn ok(&self, words: &[&str], input: &str) -> Result<Said, Verdict> {
        let said = self.said(words, input)?;
        ensure(said.code == 0, format!("{words:?}: {said:?}"))?;
        Ok(said)
    }

    /// It fails with one sentence in which this is, and all files are as they were.
    pub(super) fn refuses(&self, words: &[&str], input: &str, because: &str) -> Case {
        let before = self.files()?;
        let said = self.said(words, input)?;
        let is_one = said.err.lines().filter(|line| line.starts_with("error: ")).count() == 1;
        ensure(
            said.code == 125 && is_one && said.err.contains(because) && said.out.is_empty(),
            format!("{words:?}: {said:?}"),
        )?;
        ensure(self.files()? == before, format!("{words:?} changed a file"))
    }

    /// Its secrets, as `ls --json` has them.
    pub(super) fn listed(&self) -> Result<Vec<Value>, Verdict> {
        let said = self.ok(&["secret", "ls", "--json"], "")?;
        Ok(said.text().lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }

    /// All files of the secrets.
    pub(super) fn files(&self) -> Result<BTreeMap<PathBuf, Vec<u8>>, Verdict> {
        let mut all = BTreeMap::new();
        for folder in ["data", "config"] {
            gather(&self.home.path().join(folder), &mut all)?;
        }
        Ok(all)
    }

    /// No file has a value in it.
    pub(super) fn has_none_open(&self) -> Case {
        for (path, bytes) in self.files()? {
            let is_there = bytes.windows(MARK.len()).any(|bytes| bytes.eq_ignore_ascii_case(MARK.as_bytes()));
            ensure(!is_there, format!("a value is in {}", path.display()))?;
        }
        Ok(())
    }
}

fn gather(folder: &Path, all: &mut BTreeMap<PathBuf, Vec<u8>>) -> Case {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            gather(&path, all)?;
        } else {
            all.insert(path.clone(), std::fs::read(path)?);
        }
    }
    Ok(())
}

/// Makes the sandbox of that name if it is not there.
pub(super) fn sandbox(world: &World) -> Case {
    let said = say(world.viv(&world.project("keeper"), ["create", "shell", "."]), b"")?;
    ensure(said.code == 0 || said.err.contains("is there already"), format!("{said:?}"))
}

fn kept(world: &World) -> Case {
    sandbox(world)?;
    let mut shell = Shell::new(world)?;
    shell.set("MY_KEY", TOKEN);
    let aws = AWS.join("\n");
    let arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:ci-AbCdEf#key";
    let command = "printf 'hu%s %s' sh 'of a command'";
    // The words behind `viv secret`, the input, and what is told of it then.
    let table: [(&[&str], &str, Value); 14] = [
        (
            &["set", "github", "--store", "key-file"],
            TOKEN,
            json!({"service": "github", "sandbox": null, "source": "kept", "kept": "files", "env": ["GH_TOKEN", "GITHUB_TOKEN"]}),
        ),
        (
            &["set", "openai", "--from-env", "MY_KEY"],
            "",
            json!({"source": "environment", "from": "MY_KEY", "kept": null}),
        ),
        (
            &["set", "gitlab", "--ref", "op://Work/GitLab/token"],
            "",
            json!({"source": "reference", "from": "op://Work/GitLab/token", "kept": null}),
        ),
        (&["set", "huggingface", "--ref", arn], "", json!({"from": arn})),
        (
            &["set", "npm", "--ref", "vault:secret/ci#token", "--refresh", "on-demand"],
            "",
            json!({"from": "vault:secret/ci#token"}),
        ),
        (
            &["set", "pypi", "--command", command, "--refresh", "8h"],
            "",
            json!({"source": "command", "from": command, "hosts": ["pypi.org", "upload.pypi.org"]}),
        ),
        (
            &["set", "aws"],
            &aws,
            json!({"places": ["sigv4"], "env": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]}),
        ),
        (&["set", "anthropic", "--oauth"], "", json!({"source": "sign-in", "signed_in": [], "env": []})),
        (&["set", "groq", "--from-env", "NOT_SET", "--no-verify"], "", json!({"from": "NOT_SET"})),
        (
            &[
                "set-custom",
                "jira",
                "--host",
                "jira.example,*.jira.example:8443",
                "--env",
                "JIRA_TOKEN",
                "--header",
                "x-token=Token {value}",
                "--query",
                "key",
                "--basic",
                "ci",
                "--method",
                "get,POST",
                "--path",
                "/api/**",
                "--allow-other",
            ],
            TOKEN,
            json!({
                "service": null, "hosts": ["jira.example", "*.jira.example:8443"], "env": ["JIRA_TOKEN"], "methods": ["GET", "POST"],
                "paths": ["/api/**"], "places": ["header:x-token=Token {value}", "query:key", "basic=ci"], "allow_other": true,
            }),
        ),
        (
            &["set-custom", "jira", "--host", "jira.example", "--env", "JIRA_TOKEN", "--sandbox", NAME],
            TOKEN,
            json!({"sandbox": NAME, "hosts": ["jira.example"], "allow_other": false}),
        ),
        (
            &["set-custom", "forge", "--host", "git.example", "--git-user", "ci"],
            TOKEN,
            json!({"places": ["basic"], "env": []}),
        ),
        (
            &["set-custom", "quiet", "--host", "pkg.example", "--header", "x-key"],
            TOKEN,
            json!({"places": ["header:x-key"], "env": []}),
        ),
        (
            &[
                "set-custom",
                "shaped",
                "--host",
                "a.example",
                "--env",
                "SHAPED",
                "--placeholder",
                "mine-{alnum:40}",
            ],
            TOKEN,
            json!({"env": ["SHAPED"], "places": ["headers"]}),
        ),
    ];
    let mut rows = Vec::new();
    for (words, input, expected) in &table {
        let said = shell.ok(&[&["secret"], *words, &["--json"]].concat(), input)?;
        let row: Value = serde_json::from_str(&said.text())?;
        for (key, value) in expected.as_object().into_iter().flatten() {
            ensure(row[key] == *value, format!("{words:?}: {key} is {}, not {value}", row[key]))?;
        }
        ensure(row["name"] == words[1], format!("{row}"))?;
        rows.push(row);
    }
    // They are listed as they were said, those for all before those of one sandbox.
    rows.sort_by_key(|row| (!row["sandbox"].is_null(), row["name"].to_string()));
    let listed = shell.listed()?;
    ensure(listed == rows, format!("{listed:?}"))?;
    let said = shell.ok(&["secret", "ls"], "")?;
    let lines: Vec<String> =
        said.text().lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in [
        "SECRET SANDBOX SOURCE VARIABLES HOSTS",
        "github (all) encrypted file GH_TOKEN GITHUB_TOKEN api.github.com github.com and 4 more",
        "openai (all) environment OPENAI_API_KEY api.openai.com openai.com and 2 more",
        &format!("jira {NAME} encrypted file JIRA_TOKEN jira.example"),
        "quiet (all) encrypted file - pkg.example",
    ] {
        ensure(lines.iter().any(|known| known == line), format!("{line}: {lines:?}"))?;
    }
    ensure(lines.len() == table.len() + 1, format!("{lines:?}"))?;
    ensure(said.err.contains("vault.key: whoever reads both reads the values"), &said.err)?;
    shell.has_none_open()?;
    // Set again: replaced, and nothing of the first value is left.
    let count = shell.files()?.len();
    let said = shell.ok(&["secret", "set", "github"], "hush-another-one")?;
    ensure(said.err.starts_with("github replaced for all sandboxes, only for api.github.com"), &said.err)?;
    ensure(shell.files()?.len() == count, "a value was left behind")?;
    // Removed: those that are named, in the scope that is named.
    let said = shell.ok(&["secret", "rm", "-f", "github", "jira"], "")?;
    ensure(said.text() == "github\njira", format!("{said:?}"))?;
    let said = shell.ok(&["secret", "ls", "--json", "--sandbox", NAME], "")?.text();
    ensure(said.lines().count() == table.len() - 2 && said.contains("\"jira\""), &said)?;
    shell.ok(&["secret", "rm", "-f", "--sandbox", NAME, "jira"], "")?;
    ensure(shell.files()?.len() == count - 3, "a value was left behind")
}

fn imported(world: &World) -> Case {
    sandbox(world)?;
    let mut shell = Shell::new(world)?;
    let said = shell.ok(&["secret", "import", "--dry-run"], "")?;
    ensure(said.text().is_empty() && said.err.contains("No variable of this shell"), format!("{said:?}"))?;
    shell.set("GITHUB_TOKEN", TOKEN);
    for (name, value) in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].into_iter().zip(AWS) {
        shell.set(name, value);
    }
    shell.set("AWS_SESSION_TOKEN", "hush-session");
    shell.set("OPENAI_API_KEY", "");
    let github = "github from GITHUB_TOKEN";
    let aws = "aws from AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY";
    let both = format!("{github}\n{aws}");
    let said = shell.ok(&["secret", "import", "--dry-run"], "")?;
    ensure(said.text() == both && shell.files()?.is_empty(), format!("{said:?}"))?;
    let said = shell.said(&["secret", "import", "openai", "github"], "")?;
    let is_told = said.err.contains("no variable of OpenAI is set")
        && said.err.contains("it is read from OPENAI_API_KEY");
    ensure(said.code == 125 && said.text() == github && is_told, format!("{said:?}"))?;
    let before = shell.files()?;
    let said = shell.ok(&["secret", "import", "github"], "")?;
    ensure(
        said.err.contains("github is set for all sandboxes already; -f replaces it"),
        format!("{said:?}"),
    )?;
    ensure(shell.files()? == before, "it was replaced")?;
    let said = shell.ok(&["secret", "import", "--all", "-f"], "")?;
    ensure(said.text() == both, format!("{said:?}"))?;
    let said = shell.ok(&["secret", "import", "github", "--sandbox", NAME], "")?;
    ensure(said.text() == github, format!("{said:?}"))?;
    let listed = shell.listed()?;
    let names: Vec<_> = listed.iter().map(|row| (row["name"].as_str(), row["sandbox"].as_str())).collect();
    let expected = [(Some("aws"), None), (Some("github"), None), (Some("github"), Some(NAME))];
    ensure(names == expected && listed.iter().all(|row| row["kept"] == "files"), format!("{listed:?}"))?;
    shell.has_none_open()
}

/// Answers each of these questions on a terminal. It ends with this code and has said that.
fn answers(shell: &Shell<'_>, words: &[&str], answers: &[(&str, &str)], (code, says): (i32, &str)) -> Case {
    let mut terminal = Terminal::start(&shell.command(words), 24, 80)?;
    for (question, answer) in answers {
        eventually(question, || terminal.screen().contains(question))?;
        terminal.keys(answer)?;
    }
    let ended = terminal.end()?;
    // The last of it may be on its way to the screen still.
    eventually(says, || terminal.screen().contains(says))?;
    let screen = terminal.screen();
    ensure(ended == code && terminal.is_cooked()?, format!("{words:?}: {ended}: {screen:?}"))?;
    let is_shown = [MARK, "HUSH", "horse"].iter().any(|text| screen.contains(text));
    ensure(!is_shown, format!("{words:?}: {screen:?}"))
}

fn asked(world: &World) -> Case {
    let mut shell = Shell::new(world)?;
    let value = ("Value for GitHub (not shown): ", "hush-typed\r");
    let set = ["secret", "set", "github"];
    let (first, again) = ("(empty: a key file that only you can read): ", "The same again: ");
    // Ctrl-C, and passphrases that differ: nothing is kept.
    answers(&shell, &set, &[(value.0, "hush-ty\u{3}")], (130, "interrupted; nothing was changed"))?;
    let differ = (125, "the two passphrases differ; nothing was changed");
    answers(&shell, &set, &[value, (first, "horse\r"), (again, "horsf\r")], differ)?;
    ensure(shell.files()?.is_empty(), "something was kept")?;
    let locked = (0, "locked with your passphrase");
    answers(&shell, &set, &[value, (first, "horse\r"), (again, "horse\r")], locked)?;
    let key = [
        ("Access key id: ", AWS[0]),
        ("Secret access key: ", AWS[1]),
        ("Session token (empty for none): ", ""),
    ]
    .map(|(question, answer)| (question, format!("{answer}\r")));
    let key = key.each_ref().map(|(question, answer)| (*question, answer.as_str()));
    answers(&shell, &["secret", "set", "aws"], &key, locked)?;
    for (answer, code, says) in [("n\r", 125, "Nothing was deleted."), ("y\r", 0, "aws\r\n")] {
        answers(&shell, &["secret", "rm", "aws"], &[("Go on?", answer)], (code, says))?;
        ensure(shell.listed()?.iter().any(|row| row["name"] == "aws") == (code != 0), answer)?;
    }
    shell.has_none_open()?;
    // It opens what is locked; whoever does not know it cannot start a sandbox that has such a secret.
    sandbox(world)?;
    let start = ["start", NAME];
    shell.refuses(&start, "", "locked with a passphrase, and there is nobody to ask for it")?;
    shell.set_passphrase("house\n")?;
    shell.refuses(&start, "", "the passphrase of the secrets is wrong")?;
    shell.set("VIV_VAULT_PASSPHRASE_FILE", "/no/such/file");
    shell.refuses(&start, "", "cannot read the passphrase in /no/such/file")?;
    let state: Value = serde_json::from_str(&shell.ok(&["inspect", NAME], "")?.text())?;
    ensure(state["processes"].is_null(), format!("it runs: {state}"))
}

fn mistakes(world: &World) -> Case {
    let mut shell = Shell::new(world)?;
    // Without a key there is no way to keep a value behind a passphrase that nobody gives.
    shell.refuses(
        &["secret", "set", "github", "--store", "passphrase"],
        TOKEN,
        "nobody to ask for a new passphrase",
    )?;
    shell.ok(&["secret", "set", "github", "--store", "key-file"], TOKEN)?;
    shell.set("BAD_KEY", "hush\u{7}");
    shell.set("HF_TOKEN", "hush hush ");
    let long = TOKEN.repeat(1000);
    let ours = "hint: ";
    let table: [(&[&str], &str, [&str; 2]); 44] = [
        (&["set", "gihub"], TOKEN, ["no service is called \"gihub\"", "did you mean github?"]),
        (&["set", "nothing-like-it"], TOKEN, ["no service is called", "viv secret set-custom makes one"]),
        (&["set", "github"], "", ["the standard input is empty", "pipe the value in"]),
        (&["set", "github"], "\n", ["the standard input is empty", ours]),
        (&["set", "github"], "hush\u{7}hush", ["characters that cannot stand in a header", ""]),
        (&["set", "github"], "hush\nhush\n", ["line ends", ""]),
        (&["set", "github"], " hush", ["begins or ends with a space", ""]),
        (&["set", "github"], &long, ["is longer than 16384 bytes", ""]),
        (&["set", "aws"], "AKIAHUSH", ["this is no AWS key", ""]),
        (
            &["set", "openai", "--from-env", "NOT_SET"],
            "",
            ["the variable NOT_SET is not set", "hint: export NOT_SET="],
        ),
        (&["set", "openai", "--from-env", "BAD_KEY"], "", ["cannot stand in a header", ""]),
        (
            &["set", "gitlab", "--ref", "op://Work/GitLab/other"],
            "",
            ["the program op ended with exit code 3", "run it yourself"],
        ),
        (&["set", "gitlab", "--ref", "op://Work"], "", ["is no reference", ours]),
        (&["set", "gitlab", "--ref", "vault:secret/ci"], "", ["is no reference", ours]),
        (
            &["set", "gitlab", "--ref", "vault:secret/other#token"],
            "",
            ["the program vault ended with exit code 3", ours],
        ),
        (
            &[
                "set",
                "gitlab",
                "--ref",
                "arn:aws:secretsmanager:eu-west-1:123456789012:secret:ci-AbCdEf#other",
            ],
            "",
            ["the program aws gave no JSON object with a text \"other\"", ours],
        ),
        (
            &["set", "gitlab", "--command", "echo hush; exit 7"],
            "",
            ["the command for the value ended with exit code 7", ours],
        ),
        (&["set", "gitlab", "--command", "true"], "", ["gave nothing", ours]),
        (&["set", "gitlab", "--command", " "], "", ["--command is empty", "gh auth token"]),
        (
            &["set", "gitlab", "--command", "echo hush", "--refresh", "1s"],
            "",
            ["is no time from one minute to 30 days", ours],
        ),
        (
            &["set", "gitlab", "--refresh", "8h"],
            TOKEN,
            ["--refresh is for values of --ref and --command", ours],
        ),
        (&["set", "gitlab", "--store", "bank"], TOKEN, ["\"bank\" is no place to keep values", ours]),
        (&["set", "gitlab", "--store", "passphrase"], TOKEN, ["have a key file already", ours]),
        (
            &["set", "gitlab", "--store", "keychain"],
            TOKEN,
            ["the keychain cannot be used: there is no session bus", "--store key-file"],
        ),
        (&["set", "npm", "--oauth"], "", ["no way to sign in", ours]),
        (&["set", "github", "--sandbox", "nobody"], TOKEN, ["no sandbox is called \"nobody\"", ours]),
        (
            &["set-custom", "github", "--host", "a.example", "--env", "X"],
            TOKEN,
            ["is the name of a service", ours],
        ),
        (
            &["set-custom", "a\u{1b}[2Jb", "--host", "a.example", "--env", "X"],
            TOKEN,
            ["cannot be a secret's name", ours],
        ),
        (&["set-custom", "mine", "--host", "a b", "--env", "X"], TOKEN, ["\"a b\"", ours]),
        (&["set-custom", "mine", "--host", "*", "--env", "X"], TOKEN, ["\"*\"", ours]),
        (
            &["set-custom", "mine", "--host", "http://api.example.com/v1", "--env", "X"],
            TOKEN,
            ["a host is wanted, not a URL; api.example.com was probably meant", ours],
        ),
        (
            &["set-custom", "mine", "--host", "a.example", "--env", "GH_TOKEN"],
            TOKEN,
            ["the variable GH_TOKEN has the placeholder of the secret \"github\"", "viv secret rm github"],
        ),
        (
            &["set-custom", "mine", "--host", "a.example", "--env", "1X"],
            TOKEN,
            ["cannot be a variable's name", ours],
        ),
        (
            &["set-custom", "mine", "--host", "a.example", "--env", "PATH"],
            TOKEN,
            ["every program goes by", ours],
        ),
        (&["set-custom", "mine", "--host", "a.example"], TOKEN, ["neither a variable", ours]),
        (
            &["set-custom", "mine", "--host", "a.example", "--env", "X", "--method", "G T"],
            TOKEN,
            ["G T", ours],
        ),
        (
            &["set-custom", "mine", "--host", "a.example", "--env", "X", "--path", "api"],
            TOKEN,
            ["\"api\"", ours],
        ),
        (
            &["set-custom", "mine", "--host", "a.example", "--env", "X", "--header", "a b"],
            TOKEN,
            ["a b", ours],
        ),
        (
            &["set-custom", "mine", "--host", "a.example", "--env", "X", "--placeholder", "x"],
            TOKEN,
            ["x", ours],
        ),
        (
            &["rm", "-f", "github", "openai"],
            "",
            ["no secret is called \"openai\" for all sandboxes", "viv secret ls"],
        ),
        (&["rm", "github"], "", ["there is nobody to ask", "viv secret rm -f github"]),
        (&["import"], "", ["takes services, or --all", "--dry-run"]),
        (&["import", "gihub"], "", ["no service is called", "did you mean github?"]),
        (&["import", "huggingface"], "", ["begins or ends with a space", ""]),
    ];
    for (words, input, says) in table {
        for because in says {
            shell.refuses(&[&["secret"], words].concat(), input, because)?;
        }
    }
    shell.set("DBUS_SESSION_BUS_ADDRESS", "unix:path=/no/such/bus");
    shell.refuses(
        &["secret", "set", "gitlab", "--store", "keychain"],
        TOKEN,
        "the keychain cannot be used",
    )?;
    // Damaged files are named and left as they are.
    let index = shell.secrets().join("index.json");
    let whole = std::fs::read(&index)?;
    let cut = whole.get(..whole.len() / 2).unwrap_or_default();
    for (bytes, says) in [(cut, "is damaged"), (&b"{\"schema\": 99}"[..], "was written by a newer viv")] {
        std::fs::write(&index, bytes)?;
        for words in [&["ls"][..], &["set", "github"], &["rm", "-f", "github"], &["import", "--all"]] {
            shell.refuses(&[&["secret"], words].concat(), TOKEN, says)?;
        }
    }
    std::fs::write(&index, &whole)?;
    ensure(shell.listed()?.len() == 1, "what was there is there")
}
