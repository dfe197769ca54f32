//! Any bytes as each text of the policy language, as a rule and as all that is said about a sandbox: what is read is printed and read again as
//! the same, an error's column lies in the text, and a policy that was read answers in the same way whatever the order of its rules.

use policy::{
    CanonicalPath, HostKey, Methods, Name, Observed, Outcome, PathPattern, Policy, PolicySet, Protocol,
    Protocols, Question, Request, Resource, Rule, SyntaxError, Target, minimal_rules,
};

/// One input: the text; its first line is also a question to what the rest says.
pub(crate) fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    texts(&text);
    let (line, rest) = text.split_once('\n').unwrap_or((&text, ""));
    texts(line);
    if let Ok(rule) = serde_json::from_str::<Rule>(&text) {
        let json = serde_json::to_string(&rule).unwrap();
        assert_eq!(serde_json::from_str::<Rule>(&json).unwrap(), rule);
        assert!(!rule.command("a b").chars().any(char::is_control));
    }
    for body in [&*text, rest] {
        if let Ok(set) = serde_json::from_str::<PolicySet>(body) {
            whole(&set, line);
        }
    }
}

fn texts(text: &str) {
    let within = |error: &SyntaxError| {
        assert!((1..=text.chars().count() + 1).contains(&error.column()), "{error}");
        assert!(!error.to_string().chars().any(char::is_control));
    };
    match Resource::parse(text) {
        Ok(resource) => assert_eq!(Resource::parse(&resource.to_string()), Ok(resource)),
        Err(error) => within(&error),
    }
    match Resource::parse_list(text) {
        Ok(list) => assert!(!list.is_empty()),
        Err(error) => within(&error),
    }
    match Name::parse(text) {
        Ok(name) => {
            assert!(name.as_str().parse::<std::net::IpAddr>().is_err());
            assert_eq!(Name::parse(&name.as_str().to_uppercase()), Ok(name));
        }
        Err(error) => within(&error),
    }
    match PathPattern::parse(text) {
        Ok(pattern) => assert_eq!(PathPattern::parse(&pattern.to_string()), Ok(pattern)),
        Err(error) => within(&error),
    }
    match Question::parse(text) {
        Ok(question) => drop(HostKey::parse(&question.host.to_string()).unwrap()),
        Err(error) => within(&error),
    }
    for error in [Methods::parse(text).err(), Protocols::parse(text).err()].into_iter().flatten() {
        within(&error);
    }
    if let Ok(path) = CanonicalPath::parse(text) {
        let shown = path.to_string();
        assert!(!shown.split('/').any(|segment| segment == ".." || segment == "."), "{shown}");
    }
}

fn whole(set: &PolicySet, line: &str) {
    let json = serde_json::to_string(set).unwrap();
    assert_eq!(serde_json::from_str::<PolicySet>(&json).unwrap(), *set);
    let mut turned = set.clone();
    turned.global.reverse();
    turned.local.reverse();
    turned.once.reverse();
    turned.kits.reverse();
    turned.kits.iter_mut().for_each(|kit| kit.rules.reverse());
    let (one, other) = (Policy::compile(set), Policy::compile(&turned));
    let mut questions: Vec<Question> = Question::parse(line).into_iter().collect();
    questions.extend(
        ["a.example", "POST a.example/a%2fb", "10.0.0.1:22", "[::1]:80", "localhost:5432"]
            .map(|text| Question::parse(text).unwrap()),
    );
    for question in &questions {
        let check = one.check(question);
        assert_eq!(check, other.check(question));
        let target = Target { host: question.host.as_host(), port: question.port, protocol: Protocol::Tcp };
        let connect = one.connect(target);
        assert!(!check.is_open() || connect.is_open());
        if let Some((method, path)) = &question.request {
            let request = one.request(target, Request { method, path });
            assert!(request.outcome != Outcome::Inspect && (!check.is_open() || request.is_open()));
        }
    }
    let observed: Vec<Observed> = questions
        .iter()
        .map(|question| Observed {
            host: question.host.clone(),
            port: question.port,
            protocol: Protocol::Udp,
            request: question.request.as_ref().map(|(method, path)| (method.clone(), path.to_string())),
            address: "10.9.9.9".parse().ok(),
        })
        .collect();
    assert!(minimal_rules(&observed, Some(&one)).len() <= 2 * observed.len());
}
