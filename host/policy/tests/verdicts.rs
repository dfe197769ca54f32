//! What rules come to, by example.

use std::net::IpAddr;

use policy::{
    CanonicalPath, Decision, Host, HostKey, KitRules, Layer, Methods, Name, Outcome, PathPattern, Policy,
    PolicySet, Preset, Protocol, Protocols, Question, Request, Resource, Rule, Target, Verdict,
};

/// A rule as on the command line: `allow example.com:443 --method GET --path /a/** --protocol udp --except a,b`.
fn rule(text: &str) -> Rule {
    let mut words = text.split_whitespace();
    let decision = match words.next() {
        Some("allow") => Decision::Allow,
        Some("deny") => Decision::Deny,
        other => panic!("{other:?}"),
    };
    let mut rule = Rule::new(decision, Resource::parse(words.next().unwrap()).unwrap());
    let (mut methods, mut path) = (None, None);
    while let Some(flag) = words.next() {
        let value = words.next().unwrap();
        match flag {
            "--method" => methods = Some(Methods::parse(value).unwrap()),
            "--path" => path = Some(PathPattern::parse(value).unwrap()),
            "--protocol" => rule = rule.with_protocols(Protocols::parse(value).unwrap()).unwrap(),
            "--except" => rule = rule.with_except(Resource::parse_list(value).unwrap()).unwrap(),
            other => panic!("{other}"),
        }
    }
    if methods.is_some() || path.is_some() {
        rule =
            rule.with_http(methods.unwrap_or(Methods::Any), path.unwrap_or_else(PathPattern::all)).unwrap();
    }
    rule
}

fn rules(list: &[&str]) -> Vec<Rule> {
    list.iter().map(|text| rule(text)).collect()
}

fn set(preset: Preset, local: &[&str]) -> PolicySet {
    PolicySet { sandbox: "box".to_owned(), preset, local: rules(local), ..PolicySet::default() }
}

fn policy(local: &[&str]) -> Policy {
    Policy::compile(&set(Preset::DenyAll, local))
}

/// `tcp HOST PORT`, `udp HOST PORT`, `METHOD HOST PORT PATH`, `name HOST`, `at HOST PORT ADDRESS`.
fn ask(policy: &Policy, question: &str) -> Verdict {
    let words: Vec<&str> = question.split_whitespace().collect();
    let key = HostKey::parse(words[1]).unwrap();
    let host = key.as_host();
    let port = words.get(2).map_or(0, |port| port.parse().unwrap());
    match words[0] {
        "tcp" => policy.connect(Target::tcp(host, port)),
        "udp" => policy.connect(Target::udp(host, port)),
        "name" => policy.name(&Name::parse(words[1]).unwrap()),
        "at" => policy.upstream(Target::tcp(host, port), words[3].parse().unwrap()),
        method => {
            let path = CanonicalPath::parse(words[3]).unwrap();
            policy.request(Target::tcp(host, port), Request { method, path: &path })
        }
    }
}

use Outcome::{Allow, Deny, Inspect, Undecided};

fn expect(policy: &Policy, table: &[(&str, Outcome)]) {
    for (question, outcome) in table {
        let verdict = ask(policy, question);
        assert_eq!(verdict.outcome, *outcome, "{question}: {verdict:?}");
    }
}

#[test]
fn hosts_ports_and_protocols() {
    let policy = policy(&[
        "allow example.com",
        "allow *.one.example:443",
        "allow **.any.example:8000-8100",
        "allow api[12].x.org",
        "allow dns.example:53 --protocol tcp,udp",
        "allow 192.0.2.0/24:22",
        "allow 2001:db8::1",
        "allow localhost:5432",
    ]);
    expect(
        &policy,
        &[
            ("name example.com", Allow),
            ("name EXAMPLE.com.", Allow),
            ("tcp example.com 1", Allow),
            ("tcp example.com 65535", Allow),
            ("udp example.com 443", Undecided),
            ("name a.example.com", Undecided),
            ("tcp a.one.example 443", Allow),
            ("tcp a.one.example 80", Undecided),
            ("name one.example", Undecided),
            ("name a.b.one.example", Undecided),
            ("tcp a.b.any.example 8000", Allow),
            ("tcp a.b.any.example 8100", Allow),
            ("tcp a.b.any.example 7999", Undecided),
            ("tcp a.b.any.example 8101", Undecided),
            ("tcp api1.x.org 9", Allow),
            ("tcp api3.x.org 9", Undecided),
            ("udp dns.example 53", Allow),
            ("tcp dns.example 53", Allow),
            ("tcp 192.0.2.255 22", Allow),
            ("tcp 192.0.2.255 23", Undecided),
            ("tcp 192.0.3.0 22", Undecided),
            ("tcp ::ffff:192.0.2.1 22", Allow),
            ("tcp 64:ff9b::192.0.2.1 22", Undecided),
            ("tcp 2001:db8::1 1", Allow),
            ("tcp 2001:db8::2 1", Undecided),
            ("tcp localhost 5432", Allow),
            ("tcp localhost 5433", Undecided),
            ("tcp host.docker.internal 5432", Allow),
            ("name host.viv.internal", Allow),
            ("name example.com.evil.org", Undecided),
        ],
    );
}

#[test]
fn http_rules_with_and_without_network_rules() {
    // Network allow only: all. HTTP allow only: matches. Both deny kinds.
    let policy = policy(&[
        "allow open.example",
        "allow read.example --method GET,HEAD",
        "allow git.example --method GET --path /**",
        "allow git.example --method POST --path /**/git-upload-pack",
        "allow carved.example --protocol tcp,udp",
        "deny carved.example --method POST --path /upload/**",
        "allow shut.example --method GET",
        "deny shut.example",
        "deny only.example --method POST",
        "allow total.example",
        "deny total.example --method ANY --path /**",
    ]);
    expect(
        &policy,
        &[
            ("tcp open.example 443", Allow),
            ("POST open.example 443 /x", Allow),
            ("tcp read.example 443", Inspect),
            ("GET read.example 443 /x", Allow),
            ("POST read.example 443 /x", Undecided),
            ("get read.example 443 /x", Undecided),
            ("udp read.example 443", Undecided),
            ("GET git.example 443 /o/r.git/info/refs?service=git-receive-pack", Allow),
            ("POST git.example 443 /o/r.git/git-upload-pack", Allow),
            ("POST git.example 443 /o/r.git/git-receive-pack", Undecided),
            ("tcp carved.example 443", Inspect),
            ("udp carved.example 443", Deny),
            ("GET carved.example 443 /upload/a", Allow),
            ("POST carved.example 443 /other", Allow),
            ("POST carved.example 443 /upload/a", Deny),
            ("post carved.example 443 /upload/a", Deny),
            ("POST carved.example 443 /UPLOAD/a", Deny),
            ("POST carved.example 443 //upload/a", Deny),
            ("POST carved.example 443 /upload;x/a", Deny),
            ("POST carved.example 443 /%75pload%2Fa", Deny),
            ("tcp shut.example 443", Deny),
            ("GET shut.example 443 /", Deny),
            ("name shut.example", Deny),
            ("tcp only.example 443", Undecided),
            ("POST only.example 443 /x", Deny),
            ("GET only.example 443 /x", Undecided),
            ("name only.example", Undecided),
            ("tcp total.example 443", Deny),
            ("name total.example", Deny),
        ],
    );
    assert!(policy.needs_inspection(Host::Name(&Name::parse("read.example").unwrap()), 443));
    assert!(!policy.needs_inspection(Host::Name(&Name::parse("open.example").unwrap()), 443));
}

#[test]
fn denies_win_in_every_layer_and_exceptions_are_their_own() {
    // sbx#421, and what must not follow from it.
    let mut set =
        set(Preset::DenyAll, &["deny **.foo.com --except jira.foo.com", "allow **.foo.com", "allow foo.com"]);
    let policy = Policy::compile(&set);
    expect(
        &policy,
        &[
            ("tcp jira.foo.com 443", Allow),
            ("tcp wiki.foo.com 443", Deny),
            ("tcp foo.com 443", Allow),
            ("name a.jira.foo.com", Deny),
        ],
    );
    set.global = rules(&["deny jira.foo.com:22"]);
    let policy = Policy::compile(&set);
    expect(
        &policy,
        &[("tcp jira.foo.com 22", Deny), ("tcp jira.foo.com 443", Allow), ("name jira.foo.com", Allow)],
    );
    set.global = rules(&["deny **.foo.com"]);
    expect(&Policy::compile(&set), &[("tcp jira.foo.com 443", Deny), ("name jira.foo.com", Deny)]);
    set.global = rules(&["deny **.foo.com --except jira.foo.com:443"]);
    expect(&Policy::compile(&set), &[("tcp jira.foo.com 443", Allow), ("tcp jira.foo.com 22", Deny)]);
    for layer in 0..4 {
        let mut set = PolicySet { preset: Preset::AllowAll, ..PolicySet::default() };
        let list = rules(&["deny bad.example"]);
        match layer {
            0 => set.global = list,
            1 => set.local = list,
            2 => set.once = list,
            // A kit's deny holds without approval.
            _ => {
                set.kits =
                    vec![KitRules { kit: "k".into(), version: "1".into(), approved: false, rules: list }]
            }
        }
        set.once.push(rule("allow bad.example"));
        let policy = Policy::compile(&set);
        expect(
            &policy,
            &[("tcp bad.example 443", Deny), ("name bad.example", Deny), ("udp bad.example 443", Deny)],
        );
    }
}

#[test]
fn everything_is_everything_but_what_is_guarded() {
    let open = Policy::compile(&set(Preset::AllowAll, &[]));
    expect(
        &open,
        &[
            ("name anything.example", Allow),
            ("tcp anything.example 25", Allow),
            ("udp anything.example 443", Allow),
            ("tcp 203.0.113.1 22", Allow),
            ("tcp 10.0.0.1 22", Deny),
            ("tcp 169.254.169.254 80", Deny),
            ("tcp ::ffff:a9fe:a9fe 80", Deny),
            ("tcp 64:ff9b::a9fe:a9fe 80", Deny),
            ("tcp 2002:a9fe:a9fe::1 80", Deny),
            ("tcp ::1 80", Deny),
            ("tcp localhost 80", Undecided),
            ("name host.docker.internal", Undecided),
            ("at anything.example 443 10.0.0.1", Deny),
            ("at anything.example 443 127.0.0.1", Deny),
            ("at anything.example 443 0.0.0.0", Deny),
            ("at anything.example 443 ::ffff:192.168.0.1", Deny),
            ("at anything.example 443 fd00:ec2::254", Deny),
            ("at anything.example 443 203.0.113.1", Allow),
            ("at anything.example 443 198.18.0.1", Allow),
        ],
    );
    let shut = Policy::compile(&set(Preset::AllowAll, &["deny **", "allow localhost:1"]));
    expect(
        &shut,
        &[
            ("name a.example", Deny),
            ("tcp 203.0.113.1 22", Deny),
            ("tcp localhost 1", Deny),
            ("udp a.example 1", Deny),
        ],
    );
}

#[test]
fn a_network_rule_opens_its_range_and_a_denied_network_closes_it_for_names_too() {
    let policy = policy(&[
        "allow **.corp.example",
        "allow 10.1.0.0/16:5432",
        "deny 10.1.9.0/24 --except db.corp.example",
        "deny 203.0.113.0/24",
        "allow 0.0.0.0/0:80",
        "allow 127.0.0.1:7000",
    ]);
    expect(
        &policy,
        &[
            ("at a.corp.example 5432 10.1.2.3", Allow),
            ("at a.corp.example 5433 10.1.2.3", Deny),
            ("at a.corp.example 5432 10.2.0.1", Deny),
            ("at a.corp.example 5432 10.1.9.1", Deny),
            ("at db.corp.example 5432 10.1.9.1", Allow),
            ("at a.corp.example 443 203.0.113.9", Deny),
            ("at a.corp.example 443 64:ff9b::203.0.113.9", Deny),
            ("at a.corp.example 80 10.2.0.1", Deny),
            ("tcp 10.1.2.3 5432", Allow),
            ("tcp 10.1.2.3 80", Deny),
            ("tcp 8.8.8.8 80", Allow),
            ("tcp 8.8.8.8 81", Undecided),
            // A service of the host by its address: one resource under all its names (sbx#546).
            ("tcp host.docker.internal 7000", Allow),
            ("at host.docker.internal 7000 127.0.0.1", Allow),
            ("at host.docker.internal 7000 10.1.2.3", Deny),
            ("at host.docker.internal 7001 127.0.0.1", Undecided),
            ("at a.corp.example 7000 127.0.0.1", Allow),
            ("at a.corp.example 7001 127.0.0.1", Deny),
        ],
    );
    // `localhost:PORT` opens the host's service, and no name that resolves to the loopback address.
    let policy = self::policy(&["allow localhost:7000", "allow evil.example"]);
    expect(&policy, &[("tcp localhost 7000", Allow), ("at evil.example 7000 127.0.0.1", Deny)]);
    let policy = self::policy(&["allow localhost:*", "deny 127.0.0.0/8:22"]);
    expect(&policy, &[("tcp localhost 21", Allow), ("tcp localhost 22", Deny)]);
}

#[test]
fn the_hosts_own_addresses_are_guarded() {
    let mut set = set(Preset::AllowAll, &["allow 192.168.1.0/24"]);
    set.host_addresses =
        vec!["192.168.1.5".parse::<IpAddr>().unwrap(), "::ffff:198.51.100.7".parse().unwrap()];
    let policy = Policy::compile(&set);
    expect(
        &policy,
        &[
            ("at a.example 22 192.168.1.6", Allow),
            ("at a.example 22 192.168.1.5", Deny),
            ("at a.example 22 198.51.100.7", Deny),
            ("at a.example 22 198.51.100.8", Allow),
            ("tcp 198.51.100.7 22", Deny),
        ],
    );
    set.once = rules(&["allow 198.51.100.7:22"]);
    expect(
        &Policy::compile(&set),
        &[("tcp 198.51.100.7 22", Allow), ("at a.example 22 198.51.100.7", Allow)],
    );
}

#[test]
fn kits_wait_for_approval_under_deny_all_and_never_open_guarded_ranges_without() {
    let kit = |approved| KitRules {
        kit: "tools".into(),
        version: "1.2".into(),
        approved,
        rules: rules(&["allow api.kit.example", "allow 10.0.0.5:80", "allow localhost:9000"]),
    };
    for (preset, approved, name, private, service) in [
        (Preset::DenyAll, false, Undecided, Undecided, Undecided),
        (Preset::DenyAll, true, Allow, Allow, Allow),
        (Preset::Balanced, false, Allow, Undecided, Undecided),
        (Preset::Balanced, true, Allow, Allow, Allow),
        (Preset::AllowAll, false, Allow, Undecided, Undecided),
    ] {
        let policy = Policy::compile(&PolicySet { kits: vec![kit(approved)], ..set(preset, &[]) });
        expect(
            &policy,
            &[
                ("name api.kit.example", name),
                ("tcp api.kit.example 443", name),
                ("tcp 10.0.0.5 80", private),
                ("at api.kit.example 80 10.0.0.5", private),
                ("tcp localhost 9000", service),
                ("name host.viv.internal", service),
            ],
        );
        let verdict = ask(&policy, "tcp localhost 9000");
        if !approved {
            assert_eq!(verdict.reason.remedy.as_deref(), Some("viv policy approve tools@1.2"));
            assert_eq!(verdict.reason.layer, Layer::Kit);
        }
        let kit_rule =
            policy.rules().find(|view| view.id.as_str() == "kit/tools@1.2/allow:api.kit.example").unwrap();
        assert_eq!(kit_rule.active, approved || preset != Preset::DenyAll);
    }
}

/// Taking the advice of a remedy changes the answer: each is a command line of the shape that `viv policy` takes.
#[test]
fn remedies_help() {
    let start = PolicySet {
        sandbox: "box".to_owned(),
        preset: Preset::DenyAll,
        global: rules(&["deny **.foo.com", "deny carved.example --method POST --path /up/**"]),
        local: rules(&[
            "allow jira.foo.com",
            "deny bad.example",
            "allow read.example --method GET --path /a",
            "allow db.example",
            "allow carved.example",
        ]),
        ..PolicySet::default()
    };
    for question in [
        "tcp new.example 443",
        "udp new.example 53",
        "name other.example",
        "tcp 203.0.113.1 22",
        "tcp 2001:db8::7 22",
        "tcp localhost 5432",
        "tcp jira.foo.com 443",
        "name jira.foo.com",
        "tcp bad.example 443",
        "POST read.example 443 /a/b",
        "PROPFIND read.example 443 /a/b",
        "POST read.example 443 /x/@s%2Fp",
        "GET newer.example 443 /a",
        "POST carved.example 443 /up/x",
        "at db.example 5432 10.9.9.9",
        "at db.example 5432 64:ff9b::10.9.9.9",
        "tcp 10.8.8.8 80",
    ] {
        let mut set = start.clone();
        let mut verdict = ask(&Policy::compile(&set), question);
        assert!(!verdict.is_open(), "{question}: {verdict:?}");
        // A deny that is lifted can leave a question undecided: two steps at most.
        for _ in 0..2 {
            let remedy = verdict.reason.remedy.clone().unwrap_or_else(|| panic!("{question}: {verdict:?}"));
            let remedy = remedy.strip_prefix("viv policy ").unwrap().replace('\'', "");
            let (list, plain) = match remedy.split_once("--sandbox box ") {
                Some((verb, rest)) => (&mut set.local, format!("{verb}{rest}")),
                None => (&mut set.global, remedy),
            };
            match plain.strip_prefix("rm --id ") {
                Some(key) => list.retain(|rule| rule.key() != key),
                None => _ = policy::upsert(list, rule(&plain)),
            }
            verdict = ask(&Policy::compile(&set), question);
            if verdict.is_open() {
                break;
            }
        }
        assert!(verdict.is_open(), "{question}: {verdict:?}");
    }
    // Against a deny no allow helps: it is taken back where it stands, and a wider one is left to hold for the rest.
    for (question, remedy) in [
        ("tcp bad.example 443", Some("viv policy rm --sandbox box --id deny:bad.example")),
        ("name bad.example", Some("viv policy rm --sandbox box --id deny:bad.example")),
        ("POST carved.example 443 /up/x", Some("viv policy rm --id 'deny:carved.example:POST:/up/**'")),
        ("tcp jira.foo.com 443", Some("viv policy deny '**.foo.com' --except jira.foo.com:443")),
        ("tcp localhost 8080", Some("viv policy allow --sandbox box localhost:8080")),
    ] {
        let verdict = ask(&Policy::compile(&start), question);
        assert_eq!(verdict.reason.remedy.as_deref(), remedy, "{question}");
    }
    let verdict = ask(&Policy::compile(&self::set(Preset::AllowAll, &[])), "at a.example 80 0.0.0.0");
    assert_eq!(verdict.reason.remedy, None, "nothing opens this");
}

#[test]
fn reasons_are_said() {
    let policy =
        Policy::compile(&set(Preset::Balanced, &["deny docs.rs:443 --method GET --path /secret/**"]));
    let verdict = ask(&policy, "tcp gist.github.com 443");
    assert_eq!(verdict.outcome, Undecided);
    assert_eq!(
        verdict.reason.text,
        "no rule allows tcp to gist.github.com:443 (balanced leaves it out: gists can carry data out)"
    );
    assert_eq!(verdict.reason.remedy.as_deref(), Some("viv policy allow --sandbox box gist.github.com:443"));
    let verdict = ask(&policy, "name gist.github.com");
    assert_eq!(verdict.reason.remedy.as_deref(), Some("viv policy allow --sandbox box gist.github.com"));
    let verdict = ask(&policy, "GET docs.rs 443 /serde");
    assert_eq!(
        verdict.reason.rule.unwrap().as_str(),
        "balanced/documentation/allow:docs.rs:443:GET,HEAD:/**"
    );
    assert_eq!(verdict.reason.layer, Layer::Global);
    let verdict = ask(&policy, "GET docs.rs 443 /secret/x");
    assert_eq!(verdict.reason.rule.unwrap().as_str(), "sandbox/deny:docs.rs:443:GET:/secret/**");
    let verdict = ask(&policy, "at docs.rs 443 192.168.3.4");
    assert_eq!(verdict.reason.rule.unwrap().as_str(), "floor/guard:192.168.0.0/16");
    assert_eq!(
        verdict.reason.text,
        "192.168.3.4 is a private network (RFC 1918), which only a rule that names it reaches"
    );
    assert_eq!(verdict.reason.remedy.as_deref(), Some("viv policy allow --sandbox box 192.168.3.4:443"));
}

/// The work of a day under `balanced`: what it must let through, and what it must not.
#[test]
fn balanced_lets_read_and_keeps_in() {
    let policy = Policy::compile(&PolicySet { sandbox: "box".to_owned(), ..PolicySet::default() });
    expect(
        &policy,
        &[
            ("tcp deb.debian.org 80", Allow),
            ("tcp security.debian.org 443", Allow),
            ("tcp archive.ubuntu.com 80", Allow),
            ("tcp de.archive.ubuntu.com 80", Allow),
            ("tcp dl-cdn.alpinelinux.org 443", Allow),
            ("GET registry.npmjs.org 443 /@babel%2fcore", Allow),
            ("GET registry.npmjs.org 443 /lodash/-/lodash-4.17.21.tgz", Allow),
            ("POST registry.npmjs.org 443 /-/npm/v1/security/advisories/bulk", Allow),
            ("PUT registry.npmjs.org 443 /evil", Undecided),
            ("POST registry.npmjs.org 443 /-/user/org.couchdb.user:x", Undecided),
            ("GET pypi.org 443 /simple/requests/", Allow),
            ("POST pypi.org 443 /legacy/", Undecided),
            ("tcp files.pythonhosted.org 443", Allow),
            ("name upload.pypi.org", Undecided),
            ("tcp index.crates.io 443", Allow),
            ("tcp static.crates.io 443", Allow),
            ("GET crates.io 443 /api/v1/crates/serde", Allow),
            ("PUT crates.io 443 /api/v1/crates/new", Undecided),
            ("GET proxy.golang.org 443 /github.com/!burnt!sushi/toml/@v/list", Allow),
            ("GET proxy.golang.org 443 /golang.org/x/text/@v/v0.3.0.zip", Allow),
            ("GET proxy.golang.org 443 /sumdb/sum.golang.org/supported", Allow),
            ("GET sum.golang.org 443 /lookup/golang.org/x/text@v0.3.0", Allow),
            ("GET sum.golang.org 443 /tile/8/0/x001/234", Allow),
            ("tcp repo1.maven.org 443", Allow),
            ("POST rubygems.org 443 /api/v1/gems", Undecided),
            ("tcp api.nuget.org 443", Allow),
            ("GET github.com 443 /o/r/info/refs?service=git-upload-pack", Allow),
            ("POST github.com 443 /o/r.git/git-upload-pack", Allow),
            ("POST gitlab.com 443 /g/s/r.git/git-upload-pack", Allow),
            ("POST github.com 443 /o/r.git/git-receive-pack", Undecided),
            ("POST github.com 443 /o/r/issues", Undecided),
            ("GET api.github.com 443 /repos/o/r", Allow),
            ("POST api.github.com 443 /gists", Undecided),
            ("tcp github.com 22", Undecided),
            ("GET registry-1.docker.io 443 /v2/library/alpine/manifests/latest", Allow),
            ("HEAD registry-1.docker.io 443 /v2/library/alpine/manifests/latest", Allow),
            ("GET auth.docker.io 443 /token?service=registry.docker.io", Allow),
            ("POST registry-1.docker.io 443 /v2/me/x/blobs/uploads/", Undecided),
            ("PUT ghcr.io 443 /v2/me/x/manifests/1", Undecided),
            ("tcp production.cloudflare.docker.com 443", Allow),
            ("GET docs.rs 443 /serde", Allow),
            ("GET docs.python.org 443 /3/", Allow),
            ("GET developer.mozilla.org 443 /en-US/", Allow),
            ("POST stackoverflow.com 443 /questions/ask", Undecided),
            ("tcp api.anthropic.com 443", Allow),
            ("tcp api.openai.com 443", Allow),
            ("name gist.github.com", Undecided),
            ("name pastebin.com", Undecided),
            ("name bucket.s3.amazonaws.com", Undecided),
            ("name my.blob.core.windows.net", Undecided),
            ("GET storage.googleapis.com 443 /evil-bucket/x", Undecided),
            ("GET storage.googleapis.com 443 /proxy-golang-org-prod/x", Allow),
            ("PUT storage.googleapis.com 443 /proxy-golang-org-prod/x", Undecided),
            ("GET storage.googleapis.com 443 /proxy-golang-org-prod%2F..x/y", Undecided),
            ("name hooks.slack.com", Undecided),
            ("name cloudflare-dns.com", Undecided),
            ("name localhost", Undecided),
            ("tcp 1.1.1.1 443", Undecided),
            ("udp 8.8.8.8 53", Undecided),
            ("udp api.anthropic.com 443", Undecided),
        ],
    );
}

/// What fetches on others' behalf would carry a request's path to whoever's host stands in it.
#[test]
fn balanced_lets_nobody_fetch_for_the_guest() {
    expect(
        &Policy::compile(&PolicySet { sandbox: "box".to_owned(), ..PolicySet::default() }),
        &[
            ("GET proxy.golang.org 443 /evil.example/stolen/@v/list", Undecided),
            ("GET proxy.golang.org 443 /github.com.evil.example/stolen/@v/list", Undecided),
            ("POST proxy.golang.org 443 /github.com/a/b/@v/list", Undecided),
            ("GET sum.golang.org 443 /lookup/evil.example/stolen@v1.0.0", Undecided),
            ("GET en.wikipedia.org 443 /wiki/Rust", Allow),
            ("GET en.wikipedia.org 443 /api/rest_v1/page/html/Rust", Allow),
            (
                "GET en.wikipedia.org 443 /api/rest_v1/data/citation/mediawiki/https%3A%2F%2Fevil.example%2Fx",
                Undecided,
            ),
            ("GET www.w3.org 443 /TR/html52/", Allow),
            ("GET www.w3.org 443 /services/html2txt", Undecided),
            ("GET www.w3.org 443 /2005/08/online_xslt/xslt", Undecided),
            ("GET unpkg.com 443 /react@18/index.js", Allow),
            ("POST unpkg.com 443 /x", Undecided),
            ("name web.archive.org", Undecided),
            ("name x.translate.goog", Undecided),
        ],
    );
}

/// Hosts without an HTTP rule are passed through: among them is none to which something can be written freely.
#[test]
fn balanced_passes_nothing_through_that_stores_for_everybody() {
    for (_, rule) in Preset::Balanced.rules() {
        let resource = rule.resource().to_string();
        assert!(rule.reason().is_some());
        if rule.http().is_some() {
            continue;
        }
        let writable = [
            "github.com:",
            "gitlab.com:",
            "registry.npmjs.org:",
            "crates.io:",
            "pypi.org:",
            "storage.googleapis",
        ];
        assert!(!writable.iter().any(|host| resource.starts_with(host)), "{resource}");
        assert!(!["gist.", "paste"].iter().any(|start| resource.starts_with(start)), "{resource}");
        assert!(!resource.contains("blob.core"), "{resource}");
        // Amazon's own bucket of packages.
        assert!(!resource.contains(".s3.") || resource.starts_with("al2023-repos-"), "{resource}");
        // Wildcards only where one owner has all the names.
        let owned = [
            "lencr.org",
            "data.mcr.microsoft.com",
            "-aiplatform.googleapis.com",
            "archive.ubuntu.com",
            "quay.io",
        ];
        assert!(
            !resource.contains(['*', '?', '[']) || owned.iter().any(|owner| resource.contains(owner)),
            "{resource}"
        );
    }
}

#[test]
fn check_asks_what_enforcement_asks() {
    let policy = Policy::compile(&set(Preset::Balanced, &["allow localhost:5432", "allow 10.0.0.5:80"]));
    for (question, outcome) in [
        ("docs.rs", Inspect),
        ("docs.rs/serde", Allow),
        ("POST docs.rs/serde", Undecided),
        ("deb.debian.org:80", Allow),
        ("example.com", Undecided),
        // sbx#546: the names of the host's services are one resource, for the question as for the flow.
        ("host.docker.internal:5432", Allow),
        ("host.viv.internal:5432", Allow),
        ("localhost:5433", Undecided),
        ("10.0.0.5:80", Allow),
        ("10.0.0.6:80", Undecided),
        ("http://10.0.0.5/x", Allow),
    ] {
        assert_eq!(policy.check(&Question::parse(question).unwrap()).outcome, outcome, "{question}");
    }
    let mut udp = Question::parse("api.anthropic.com").unwrap();
    udp.protocol = Protocol::Udp;
    assert_eq!(policy.check(&udp).outcome, Undecided);
}

#[test]
fn thousands_of_rules_are_found_by_their_suffix() {
    let mut set = set(Preset::Balanced, &[]);
    for n in 0..20_000 {
        set.local.push(rule(&format!("allow h{n}.example.com:443")));
        set.local.push(rule(&format!("deny *.d{n}.example.com")));
    }
    for n in 0..=255 {
        set.local.push(rule(&format!("allow 203.0.{n}.0/24:22")));
    }
    let policy = Policy::compile(&set);
    for n in (0..20_000).step_by(7) {
        assert_eq!(ask(&policy, &format!("tcp h{n}.example.com 443")).outcome, Allow);
        assert_eq!(ask(&policy, &format!("tcp x.d{n}.example.com 443")).outcome, Deny);
        assert_eq!(ask(&policy, &format!("tcp 203.0.{}.9 22", n % 256)).outcome, Allow);
    }
}
