//! Names and the addresses that they resolve to: what is guarded, what is tried.

use std::net::{IpAddr, Ipv4Addr};

use e2e::{Case, ensure};
use network::{Answer, How, Named, Net, OWN_ADDRESS, SILENT, Site, echo};

pub(crate) const CASES: &[Named] = &[
    ("a_name_that_resolves_to_a_guarded_address_is_refused", guarded),
    ("a_name_that_is_bound_anew_is_judged_anew", rebinding),
    ("all_addresses_are_tried", dead_ends),
    ("a_name_with_an_ipv6_address_alone_works", six),
    ("an_alias_is_followed", alias),
];

/// A plain server, whatever the name says.
const PLAIN: How<'static> = How { port: None, alpn: &[], six: false };

/// Guarded addresses, and where a connection would end that got through.
const GUARDED: &[(&str, &str)] = &[
    ("127.0.0.1", "127.0.0.1"),
    ("127.9.9.9", "127.9.9.9"),
    ("0.0.0.0", "127.0.0.1"),
    ("10.1.2.3", "10.1.2.3"),
    ("169.254.169.254", "169.254.169.254"),
    ("::1", "::1"),
    ("::", "::1"),
    ("::ffff:127.0.0.1", "127.0.0.1"),
    ("::ffff:10.1.2.3", "10.1.2.3"),
    ("64:ff9b::a01:203", "64:ff9b::a01:203"),
    ("fd00:ec2::254", "fd00:ec2::254"),
];

fn guarded(net: &Net) -> Case {
    let mut traps: Vec<Site> = Vec::new();
    let mut script = String::new();
    let own = OWN_ADDRESS.to_string();
    let all = GUARDED.iter().copied().chain([(own.as_str(), own.as_str())]);
    for (number, (address, end)) in all.enumerate() {
        let name = format!("trap{number}.guarded.example");
        let address: IpAddr = address.parse().map_err(|error| network::wrong(&error))?;
        let end: IpAddr = end.parse().map_err(|error| network::wrong(&error))?;
        net.names.addresses(&name, &[address]);
        if !traps.iter().any(|trap| trap.address.ip() == end) {
            traps.push(net.site_at(&name, end, PLAIN, echo())?);
        }
        script += &format!("curl -sS -m 60 -o /dev/null http://{name}/; echo {number} $?\n");
    }
    net.allow(&["*.guarded.example:80"])?;
    let said = net.guest(&script)?;
    let expected: String = (0..=GUARDED.len()).map(|number| format!("{number} 7\n")).collect();
    ensure(said.text() == expected.trim_end(), format!("{said:?}"))?;
    for trap in &traps {
        ensure(trap.connections() == 0, format!("{} was reached", trap.address))?;
    }
    net.recorded("trap3.guarded.example", "the guard's rule", |record| {
        record.to_string().contains("floor/guard:10.0.0.0/8")
    })?;
    // A rule that names the network opens it, for this server and no other guarded one.
    net.allow(&["10.0.0.0/8:80"])?;
    let said = net.guest(
        "curl -sS -m 60 http://trap3.guarded.example/; curl -sS -m 60 http://trap4.guarded.example/; echo $?",
    )?;
    net.forget("10.0.0.0/8:80")?;
    ensure(said.text() == "GET / HTTP/1.1\n7", format!("{said:?}"))
}

fn rebinding(net: &Net) -> Case {
    let name = "rebound.example";
    let trap = net.site_at(name, Ipv4Addr::LOCALHOST.into(), How { port: Some(8081), ..PLAIN }, echo())?;
    let good = net.site(name, How { port: Some(8081), ..PLAIN }, echo())?;
    let (first, then) = (vec![good.address.ip()], vec![Ipv4Addr::LOCALHOST.into()]);
    // The first connection asks for both families.
    net.names.set(name, Answer::InTurn(vec![first.clone(), first, then]));
    net.allow(&["rebound.example:8081"])?;
    let get = format!("curl -sS -m 60 http://{name}:8081/ || echo $?");
    let said = net.guest(&format!("{get}; {get}; {get}"))?;
    ensure(said.text().starts_with("GET / HTTP/1.1\n"), format!("{said:?}"))?;
    ensure(said.text().ends_with('7'), format!("{said:?}"))?;
    ensure(good.connections() >= 1 && trap.connections() == 0, "the host's loopback was reached")?;
    net.recorded(name, "the guard's rule", |record| {
        record["decision"] == "Refused" && record.to_string().contains("floor/guard:127.")
    })
    .map(|_| ())
}

fn dead_ends(net: &Net) -> Case {
    let name = "many.example";
    let site = net.site(name, PLAIN, echo())?;
    let [a, b, c, _] = SILENT.0.octets();
    let silent = IpAddr::V4(Ipv4Addr::new(a, b, c, 7));
    let (refused, refused_six) = (net.address(false), net.address(true));
    net.names.addresses(name, &[silent, refused, refused_six, site.address.ip()]);
    net.allow(&["many.example:80"])?;
    let said = net.guest(&format!("curl -sS -m 60 http://{name}/"))?;
    ensure(said.text() == "GET / HTTP/1.1", format!("{said:?}"))?;
    // None of them: a reset, and no long wait of the guest's.
    let name = "none.example";
    net.names.addresses(name, &[refused, refused_six]);
    net.allow(&["none.example:80"])?;
    let said = net.guest(&format!("curl -sS -m 60 http://{name}/; echo $?"))?;
    ensure(said.text() == "7", format!("{said:?}"))
}

fn six(net: &Net) -> Case {
    let site = net.site("six.example", How { six: true, ..How::default() }, echo())?;
    net.allow(&["six.example:443"])?;
    for flag in ["-4", "-6"] {
        let said = net.guest(&format!("curl {flag} -sS -m 60 https://six.example/"))?;
        ensure(said.text() == "GET / HTTP/2.0", format!("{flag}: {said:?}"))?;
    }
    ensure(site.connections() == 2, "both came by IPv6")
}

fn alias(net: &Net) -> Case {
    let _site = net.site("target.example", PLAIN, echo())?;
    net.names.set("alias.example", Answer::Alias("target.example".into()));
    net.allow(&["alias.example:80"])?;
    // The rule is about the name that was asked for; the other one stays refused.
    let said =
        net.guest("curl -sS -m 60 http://alias.example/; curl -sS -m 60 http://target.example/; echo $?")?;
    ensure(said.text() == "GET / HTTP/1.1\n6", format!("{said:?}"))
}
