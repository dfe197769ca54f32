//! Questions to the user, the verbs of `viv policy`, and what `check` says beside what happens.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use e2e::{Case, Terminal, Verdict, ensure, eventually};
use network::{How, NAME, Named, Net, Site, echo};
use serde_json::Value;

pub(crate) const CASES: &[Named] = &[
    ("questions_are_asked_and_the_answers_hold_for_as_long_as_they_say", asked),
    ("the_verbs_do_what_they_say_and_an_unanswered_question_is_a_no", verbs),
    ("check_agrees_with_what_happens_by_each_kind_of_rule", check),
];

/// A plain server.
const PLAIN: How<'static> = How { port: None, alpn: &[], six: false };

/// Wide enough that no line of ours is broken.
const COLUMNS: u16 = 250;

/// A session of the shared sandbox that asks, on a terminal of its own.
fn asking(net: &Net, more: &[&str]) -> Result<Terminal, Verdict> {
    let arguments = [net.world.interactive(), more.iter().map(|word| (*word).to_owned()).collect()].concat();
    Terminal::start(&net.world.viv(&net.shared(), arguments), 24, COLUMNS)
}

/// Has the session connect to a host, and waits for the question with this label.
fn connect(terminal: &mut Terminal, name: &str, label: u32) -> Case {
    terminal.keys(&format!("curl -sS -m 100 -o /dev/null http://{name}.asked.example/; echo {name}=$?\r"))?;
    terminal.wait_for(&format!("may the sandbox reach {name}.asked.example:80?"))?;
    terminal.wait_for(&format!("{label}o once"))
}

fn inspected(net: &Net) -> Result<Value, Verdict> {
    Ok(serde_json::from_str(&net.viv_ok(&["inspect", NAME])?)?)
}

/// Kills the gateway of the shared sandbox, and waits for the next one.
fn kill_gateway(net: &Net) -> Case {
    let before = inspected(net)?;
    let keeper = before["processes"]["keeper"].to_string();
    let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"))?;
    let gateway = children.trim().parse().ok().and_then(rustix::process::Pid::from_raw);
    let gateway = gateway.ok_or_else(|| Verdict::Wrong(format!("children {children:?}")))?;
    rustix::process::kill_process(gateway, rustix::process::Signal::KILL)?;
    let restarts = before["network"]["restarts"].as_u64().map(|restarts| restarts + 1);
    eventually("another gateway", || {
        inspected(net)
            .is_ok_and(|now| now["network"]["up"] == true && now["network"]["restarts"].as_u64() == restarts)
    })
}

fn asked(net: &Net) -> Case {
    let sites: Vec<Site> = ["stay", "no", "once", "always"]
        .iter()
        .map(|name| net.site(&format!("{name}.asked.example"), PLAIN, echo()))
        .collect::<Result<_, _>>()?;
    let connections = || sites.iter().map(Site::connections).collect::<Vec<_>>();
    let mut terminal = asking(net, &["--ask"])?;
    terminal.wait_for("$ ")?;
    connect(&mut terminal, "stay", 1)?;
    ensure(connections() == [0; 4], "it is held until there is an answer")?;
    terminal.keys("\x1d1s")?;
    // The rule holds as soon as its file is there, before that is said.
    terminal.wait_for_all(&["stay.asked.example:80 is allowed in this sandbox", "stay=0"])?;
    connect(&mut terminal, "no", 2)?;
    terminal.keys("\x1d2n")?;
    terminal.wait_for("no.asked.example:80 is refused")?;
    terminal.wait_for("no=7")?;
    connect(&mut terminal, "once", 3)?;
    terminal.keys("\x1d3o")?;
    terminal.wait_for("once.asked.example:80 is allowed until the sandbox stops")?;
    terminal.wait_for("once=0")?;
    let listed = net.viv_ok(&["policy", "ls", NAME])?;
    let has = |rule: &str| listed.lines().any(|line| line.trim().split("   ").next() == Some(rule));
    ensure(
        has("sandbox/allow:stay.asked.example:80") && has("once/allow:once.asked.example:80"),
        listed.clone(),
    )?;
    ensure(!listed.contains("no.asked.example"), listed)?;
    let checked =
        net.viv_ok(&["policy", "check", "--json", "--sandbox", NAME, "http://once.asked.example/"])?;
    let checked: Value = serde_json::from_str(&checked)?;
    ensure(checked["layer"] == "once" && checked["allowed"] == true, checked.to_string())?;
    let file = fs::read_to_string(net.world.folder(NAME)?.join("policy.json"))?;
    ensure(file.contains("stay.asked.example") && !file.contains("once.asked.example"), file)?;
    // Neither a second connection is asked about nor one by the next gateway: the next label is the next question's.
    terminal.keys("curl -sS -m 20 http://once.asked.example/again; echo second=$?\r")?;
    terminal.wait_for("GET /again HTTP/1.1")?;
    terminal.wait_for("second=0")?;
    kill_gateway(net)?;
    terminal.keys(
        "until curl -sS -m 20 -o /dev/null http://once.asked.example/; do sleep 0.3; done; echo third=$?\r",
    )?;
    terminal.wait_for("third=0")?;
    // Taken back it is asked about again.
    let removed = net.viv_ok(&["policy", "rm", "--sandbox", NAME, "--resource", "once.asked.example:80"])?;
    ensure(removed == "once/allow:once.asked.example:80", removed)?;
    connect(&mut terminal, "once", 4)?;
    terminal.keys("\x1d4o")?;
    terminal.wait_for("once=0")?;
    connect(&mut terminal, "always", 5)?;
    terminal.keys("\x1d5a")?;
    terminal.wait_for_all(&["always.asked.example:80 is allowed in all sandboxes", "always=0"])?;
    terminal.keys("exit\r")?;
    terminal.end()?;
    let removed = net.viv_ok(&["policy", "rm", "--resource", "always.asked.example:80"])?;
    ensure(removed == "global/allow:always.asked.example:80", removed)?;
    // A client may try both families at once.
    let [stay, no, once, always] = <[usize; 4]>::try_from(connections()).unwrap_or_default();
    ensure(
        stay > 0 && no == 0 && once > 2 && always > 0,
        format!("how often each was connected to: {stay} {no} {once} {always}"),
    )?;
    // It ends with the sandbox; what was said for the sandbox does not.
    net.viv_ok(&["stop", NAME])?;
    let listed = net.viv_ok(&["policy", "ls", NAME])?;
    ensure(!listed.contains("once") && listed.contains("stay.asked.example"), listed)?;
    let said = net.guest(
        "for name in stay once; do curl -sS -m 60 -o /dev/null http://$name.asked.example/; echo $?; done",
    )?;
    ensure(said.text() == "0\n6", format!("{said:?}"))?;
    // Nor does it outlast the rules of the file.
    let mut terminal = asking(net, &["--ask"])?;
    terminal.wait_for("$ ")?;
    for label in 1..=2 {
        connect(&mut terminal, "once", label)?;
        terminal.keys(&format!("\x1d{label}o"))?;
        terminal.wait_for("once=0")?;
        net.viv_ok(&["policy", "reset", "-f", "--sandbox", NAME])?;
    }
    let listed = net.viv_ok(&["policy", "ls", NAME])?;
    ensure(!listed.contains("asked.example"), listed)?;
    terminal.keys("exit\r")?;
    terminal.end().map(|_| ())
}

/// The project of the sandbox that the verbs are tried with, and its name.
const PROJECT: &str = "verbs";
const VERBS: &str = "shell-verbs";
/// What stands in for a kit.
const KIT: &str = r#"{"schema": 1, "kit": "web", "version": "1.0", "rules": [{"decision": "allow", "resource": "kit.example:80"}]}"#;

/// In balanced, in plain HTTP; by no rule; by the kit's.
const HOSTS: &[&str] = &["c.pki.goog", "free.example", "kit.example"];

/// What `curl` in the guest says of each of them: its code.
fn get(net: &Net) -> Result<String, Verdict> {
    let folder = net.world.project(PROJECT);
    let script = format!(
        "for host in {}; do curl -sS -m 60 -o /dev/null http://$host/; printf '%s ' $?; done",
        HOSTS.join(" ")
    );
    Ok(net.world.shell(&folder, &script, b"")?.text())
}

/// Lines of a log so far.
type Lines = Arc<Mutex<Vec<Value>>>;

/// `viv policy log -f --json` and its lines.
fn follow(net: &Net) -> Result<(Child, Lines), Verdict> {
    let mut child = net
        .world
        .viv(&net.world.project(PROJECT), ["policy", "log", "-f", "--json", VERBS])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let out = child.stdout.take().ok_or_else(|| Verdict::Wrong("no output".into()))?;
    let lines = Lines::default();
    let kept = lines.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            let record = serde_json::from_str(&line).unwrap_or(Value::String(line));
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(record);
        }
    });
    Ok((child, lines))
}

/// The sums of records, as `--totals` has them: by decision, host and port; decisions without ends, bytes with them.
fn sums(records: &[Value]) -> BTreeMap<(String, String, u64), [u64; 3]> {
    let mut all = BTreeMap::new();
    for record in records {
        let text = |field: &str| record[field].as_str().unwrap_or("?").to_owned();
        let number = |field: &str| record[field].as_u64().unwrap_or(0);
        let sum: &mut [u64; 3] =
            all.entry((text("decision").to_lowercase(), text("host"), number("port"))).or_default();
        let count = if record["kind"] == "Ended" { 0 } else { number("count") };
        for (sum, more) in sum.iter_mut().zip([count, number("bytes_up"), number("bytes_down")]) {
            *sum += more;
        }
    }
    all
}

fn lines(text: &str) -> Result<Vec<Value>, Verdict> {
    Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

fn verbs(net: &Net) -> Case {
    let unheard = net.site("unheard.example", PLAIN, echo())?;
    // Its minute goes by while the verbs are tried.
    let script = "curl -sS -m 100 -o /dev/null http://unheard.example/; echo unheard=$?";
    let begun = Instant::now();
    let mut unanswered = asking(net, &["--ask", "--", "-c", script])?;
    unanswered.wait_for("may the sandbox reach unheard.example:80?")?;
    let question = Instant::now();
    let (done, refused) = thread::scope(|scope| {
        let refused =
            scope.spawn(|| unanswered.wait_for("unheard=7").map(|()| (question.elapsed(), begun.elapsed())));
        (tried(net), refused.join())
    });
    // Nothing of the verbs is left for other cases, whatever became of them.
    let removed = net.viv_ok(&["rm", "-f", VERBS]).and(net.viv_ok(&["policy", "reset", "-f"]));
    done?;
    removed?;
    let minute = refused.map_err(|_| Verdict::Wrong("who waits for the refusal panicked".into()))??;
    // The question may be seen late: it was not asked before the session was.
    let (least, most) = minute;
    ensure(most.as_secs() >= 60 && least.as_secs() <= 120, format!("it was refused after {minute:?}"))?;
    unanswered.end()?;
    ensure(unheard.connections() == 0, "nobody said yes")?;
    net.recorded("unheard.example", "that nobody answered", |record| {
        record["decision"] == "Refused" && record["text"] == "nobody answered within a minute"
    })
    .map(|_| ())
}

fn tried(net: &Net) -> Case {
    for name in HOSTS {
        net.site(name, PLAIN, echo())?;
    }
    let kit = net.scratch().join("web.json");
    fs::write(&kit, KIT)?;
    let said = net.viv_ok(&["policy", "init", "deny-all"])?;
    ensure(said.starts_with("deny-all for all sandboxes"), said)?;
    let folder = net.world.project(PROJECT);
    let mut arguments = net.world.interactive();
    arguments.extend(["--kit".to_owned(), kit.display().to_string()]);
    arguments.extend(["--", "-c", "curl -sS -m 60 http://kit.example/; echo $?"].map(str::to_owned));
    let said = e2e::say(net.world.viv(&folder, arguments), b"")?;
    ensure(said.text() == "6", format!("it was not approved: {said:?}"))?;
    let (mut following, followed) = follow(net)?;
    let tried = kit_by_kit(net).and_then(|()| logged(net, &followed));
    let _ = following.kill();
    let _ = following.wait();
    tried
}

fn kit_by_kit(net: &Net) -> Case {
    let waits = || net.viv_ok(&["policy", "approve"]);
    let waiting = format!("web 1.0  in {VERBS}: allow:kit.example:80");
    let said = waits()?;
    ensure(said == waiting, said)?;
    let said = net.viv_ok(&["policy", "ls", VERBS])?;
    ensure(said.contains("kit/web@1.0/allow:kit.example:80   waits: viv policy approve"), said)?;
    net.viv_ok(&["policy", "approve", "web"])?;
    ensure(waits()?.is_empty(), "it is approved")?;
    let said = get(net)?;
    ensure(said == "6 6 0", format!("deny-all with an approved kit: {said}"))?;
    // The approval is of those very bytes, in a sandbox that runs, too.
    let copy = net.world.folder(VERBS)?.join("kits/00.json");
    fs::write(&copy, KIT.replace("\"rules\"", " \"rules\""))?;
    let said = waits()?;
    ensure(said == waiting, said)?;
    let said = get(net)?;
    ensure(said == "6 6 6", format!("deny-all with other bytes: {said}"))?;
    for (arguments, expected) in [
        (&["policy", "init", "balanced"][..], "0 6 0"),
        (&["policy", "init", "allow-all", "--sandbox", VERBS], "0 0 0"),
        (&["policy", "init", "deny-all", "--sandbox", VERBS], "6 6 6"),
        (&["policy", "allow", "--sandbox", VERBS, "free.example:80"], "6 0 6"),
        (&["policy", "reset", "-f", "--sandbox", VERBS], "0 6 0"),
    ] {
        net.viv_ok(arguments)?;
        let said = get(net)?;
        ensure(said == expected, format!("{arguments:?}: {said}"))?;
    }
    let aside = |folder: &Path| -> Result<String, Verdict> {
        let mut names = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
        let found = names.find(|path| path.to_string_lossy().contains("/policy.json."));
        Ok(fs::read_to_string(found.ok_or_else(|| Verdict::Wrong("nothing was put aside".into()))?)?)
    };
    let kept = aside(&net.world.folder(VERBS)?)?;
    ensure(kept.contains("free.example:80"), format!("what was reset is kept: {kept}"))?;
    let said = net.viv_ok(&["policy", "inspect", "--sandbox", VERBS, "kit/web"])?;
    let rule: Value = serde_json::from_str(&said)?;
    ensure(
        rule["id"] == "kit/web@1.0/allow:kit.example:80" && rule["layer"] == "kit" && rule["active"] == true,
        said,
    )?;
    let preset = lines(&net.viv_ok(&["policy", "inspect", "balanced"])?)?;
    let named = |rule: &Value| rule["rule"]["resource"] == "c.pki.goog:80" && rule["decision"] == "allow";
    ensure(preset.iter().any(named), format!("{} rules", preset.len()))?;
    net.viv_ok(&["policy", "init", "deny-all"])?;
    for said in ["global/allow:free.example:80", "global/allow:free.example:80   was there already"] {
        let allowed = net.viv_ok(&["policy", "allow", "free.example:80"])?;
        ensure(allowed == said, allowed)?;
    }
    let said = net.viv_ok(&["policy", "reset", "-f"])?;
    ensure(said == "balanced for all sandboxes", said)?;
    let said = net.viv_ok(&["policy", "ls"])?;
    ensure(said == "preset balanced", said)
}

/// What was followed is what is there, and adds up to the totals.
fn logged(net: &Net, followed: &Mutex<Vec<Value>>) -> Case {
    net.viv_ok(&["stop", VERBS])?;
    let all = lines(&net.viv_ok(&["policy", "log", "--json", VERBS])?)?;
    let seen = || followed.lock().unwrap_or_else(PoisonError::into_inner).clone();
    eventually("the last line of what is followed", || seen().len() >= all.len())?;
    let in_order = |mut records: Vec<Value>| {
        records.sort_by_key(|record| record["seq"].as_u64());
        records
    };
    let (seen, all) = (in_order(seen()), in_order(all));
    ensure(seen == all, format!("{seen:?}\nis not\n{all:?}"))?;
    all.iter().try_for_each(named_and_dated)?;
    let totals = lines(&net.viv_ok(&["policy", "log", "--totals", "--json", VERBS])?)?;
    ensure(sums(&all) == sums(&totals), format!("{:?}\nis not\n{:?}", sums(&all), sums(&totals)))?;
    let by = |decision: &str, host: &str, port: u64| {
        sums(&all).get(&(decision.to_owned(), host.to_owned(), port)).copied().unwrap_or_default()
    };
    // Requests in clear are looked into: a connection and a request each, of which four got `GET / HTTP/1.1`.
    let [count, up, down] = by("allowed", "kit.example", 80);
    ensure(count >= 8 && (up, down) == (0, 60), format!("{count} {up} {down}"))?;
    ensure(by("refused", "free.example", 0)[0] >= 4, format!("{:?}", sums(&all)))
}

/// A record says which sandbox it is of, and when it was, in UTC; all were made within the hour.
fn named_and_dated(record: &Value) -> Case {
    let time = |field: &str| {
        let text = record[field].as_str().unwrap_or_default();
        humantime::parse_rfc3339(text).map_err(|error| Verdict::Wrong(format!("{field}: {error}: {record}")))
    };
    let (first, last, now) = (time("time")?, time("last")?, SystemTime::now());
    let is_recent = now.duration_since(first).is_ok_and(|ago| ago < Duration::from_secs(3600));
    ensure(record["sandbox"] == VERBS && first <= last && last <= now && is_recent, record.to_string())
}

/// A request, and whether it passes.
type Asked = (&'static str, &'static str, bool);

/// What is asked for; the rules are those of [`check`].
const ASKED: &[Asked] = &[
    ("GET", "https://whole.check.example/any/where", true),
    ("DELETE", "https://whole.check.example/", true),
    ("GET", "http://whole.check.example/", false),
    ("GET", "https://sub.whole.check.example/", false),
    ("GET", "https://some.check.example/open/a", true),
    ("HEAD", "https://some.check.example/open/a", false),
    ("GET", "https://some.check.example/open", true),
    ("GET", "https://some.check.example/closed", false),
    ("POST", "https://some.check.example/open/a", false),
    ("GET", "https://part.check.example/open", true),
    ("PUT", "https://part.check.example/shut/x", false),
    ("GET", "https://part.check.example/%73hut/x", false),
    ("GET", "https://part.check.example/SHUT", false),
    ("GET", "http://one.wild.check.example/", true),
    ("GET", "http://two.one.wild.check.example/", false),
    ("GET", "http://no.wild.check.example/", false),
    ("GET", "http://yes.no.wild.check.example/", true),
    ("GET", "http://ports.check.example:8000/", true),
    ("GET", "http://ports.check.example:8002/", false),
    ("GET", "http://198.51.100.99/", true),
    ("GET", "http://198.51.100.98/", false),
    ("GET", "http://10.9.9.9/", false),
    ("GET", "http://host.viv.internal:8095/", true),
    ("GET", "http://host.viv.internal:8096/", false),
    ("GET", "http://nobodys.check.example/", false),
];

/// Rules of several kinds at once, and each request by the command and by the guest.
fn check(net: &Net) -> Case {
    let whole = net.site("whole.check.example", How::default(), echo())?;
    // There is somebody at each refused one.
    net.site_at("whole.check.example", whole.address.ip(), PLAIN, echo())?;
    for name in ["sub.whole", "some", "part"] {
        net.site(&format!("{name}.check.example"), How::default(), echo())?;
    }
    for name in ["one.wild", "two.one.wild", "no.wild", "yes.no.wild", "nobodys"] {
        net.site(&format!("{name}.check.example"), PLAIN, echo())?;
    }
    let ports = net.address(false);
    net.names.addresses("ports.check.example", &[ports]);
    for port in [8000, 8002] {
        net.site_at("ports.check.example", ports, How { port: Some(port), ..PLAIN }, echo())?;
    }
    for address in
        [Ipv4Addr::new(198, 51, 100, 99), Ipv4Addr::new(198, 51, 100, 98), Ipv4Addr::new(10, 9, 9, 9)]
    {
        net.site_at("literal", address.into(), PLAIN, echo())?;
    }
    for port in [8095, 8096] {
        net.site_at("localhost", Ipv4Addr::LOCALHOST.into(), How { port: Some(port), ..PLAIN }, echo())?;
    }
    net.allow(&["whole.check.example:443,part.check.example:443,ports.check.example:8000-8001"])?;
    net.allow(&["--method", "GET", "--path", "/open/**", "some.check.example:443"])?;
    net.deny(&["--path", "/shut/**", "part.check.example"])?;
    net.allow(&["*.wild.check.example:80,yes.no.wild.check.example:80"])?;
    net.deny(&["**.no.wild.check.example,no.wild.check.example", "--except", "yes.no.wild.check.example"])?;
    net.allow(&["198.51.100.99:80,localhost:8095"])?;
    let script: String = ASKED
        .iter()
        .map(|(method, url, _)| {
            let method = if *method == "HEAD" { "-I".to_owned() } else { format!("-X {method}") };
            format!(
                "curl -sS -m 60 -o /dev/null -w '%{{http_code}} ' {method} '{url}' 2>/dev/null; echo $?\n"
            )
        })
        .collect();
    let happened = net.guest(&script)?.text();
    let happened: Vec<&str> = happened.lines().collect();
    ensure(happened.len() == ASKED.len(), format!("{happened:?}"))?;
    for ((method, url, expected), happened) in ASKED.iter().zip(happened) {
        let said = net.world.run(&["policy", "check", "--sandbox", NAME, method, url])?;
        let passed = match happened {
            "200 0" => true,
            // Refused as a request, as a name, as a connection.
            "403 0" | "000 6" | "000 7" => false,
            other => return Err(Verdict::Wrong(format!("{method} {url}: {other}"))),
        };
        let says = match said.code {
            0 => true,
            1 => false,
            _ => return Err(Verdict::Wrong(format!("{method} {url}: {said:?}"))),
        };
        ensure(
            (says, passed) == (*expected, *expected),
            format!("{method} {url}: {happened:?} happened, and check says {}", said.text()),
        )?;
    }
    net.forget("localhost:8095")?;
    net.forget("198.51.100.99:80")
}
