//! Upstream proxies by the environment of the command that starts a sandbox.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use e2e::{Case, Said, Verdict, ensure, eventually, say};
use http::Version;
use network::{How, Named, Net, Proxy, Speaks, echo};

pub(crate) const CASES: &[Named] = &[
    ("an_http_proxy_is_asked_by_name", by_connect),
    ("a_proxy_over_tls_is_asked_by_name", by_connect_over_tls),
    ("a_socks5_proxy_is_asked_by_name", by_socks),
    ("nothing_goes_past_a_proxy_that_cannot_be_used", unusable),
];

fn by_connect(net: &Net) -> Case {
    through(net, "connected", Speaks::Connect, "https_proxy")
}

fn by_connect_over_tls(net: &Net) -> Case {
    through(net, "sealed", Speaks::ConnectOverTls, "https_proxy")
}

fn by_socks(net: &Net) -> Case {
    through(net, "socksed", Speaks::Socks5, "all_proxy")
}

/// A session in a sandbox of its own, started with these variables.
fn session(net: &Net, name: &str, variables: &[(&str, &str)], script: &str) -> Result<Said, Verdict> {
    let mut arguments = net.world.interactive();
    arguments.extend(["--", "-c", script].map(str::to_owned));
    let mut command = net.world.viv(&net.world.project(name), arguments);
    command.envs(variables.iter().copied());
    say(command, b"")
}

fn through(net: &Net, name: &str, speaks: Speaks, variable: &str) -> Case {
    let host = |label: &str| format!("{label}.{name}.example");
    // The host's own name server knows none of those that go by the proxy.
    let plain = net.site_at(&host("plain"), net.address(false), How::default(), echo())?;
    let inspected = net.site_at(&host("inspected"), net.address(false), How::default(), echo())?;
    let direct = net.site(&host("direct"), How::default(), echo())?;
    net.names.addresses(&host("guarded"), &[Ipv4Addr::new(10, 7, 7, 7).into()]);
    let routes = [&plain, &inspected].map(|site| (format!("{}:443", site.name), site.address));
    let proxy: Proxy = net.proxy(speaks, routes.into())?;
    let sandbox = format!("shell-{name}");
    let (url, no_proxy) = (proxy.url(), format!("{},other.example", host("direct")));
    let variables = [(variable, url.as_str()), ("no_proxy", no_proxy.as_str())];
    let said = session(net, name, &variables, "env; sudo cat /proc/1/environ")?;
    ensure(said.code == 0 && !said.text().contains("proxy"), format!("the guest is told of it: {said:?}"))?;
    for label in ["plain", "direct", "guarded", "unrouted"] {
        net.viv_ok(&["policy", "allow", "--sandbox", &sandbox, &format!("{}:443", host(label))])?;
    }
    let inspected_port = format!("{}:443", host("inspected"));
    net.viv_ok(&[
        "policy",
        "allow",
        "--sandbox",
        &sandbox,
        "--method",
        "GET",
        "--path",
        "/**",
        &inspected_port,
    ])?;
    let get = |label: &str| format!("curl -sS -m 60 https://{}/ 2>/dev/null; echo $?; ", host(label));
    let script: String = ["plain", "inspected", "direct", "guarded", "unrouted", "refused"].map(get).concat();
    let said = session(net, name, &variables, &script)?;
    let passed = "GET / HTTP/2.0\n0\n";
    ensure(said.text() == format!("{passed}{passed}{passed}7\n7\n6"), format!("{said:?}"))?;
    ensure(inspected.seen().iter().all(|one| one.version == Version::HTTP_2), "HTTP/2 all the way")?;
    ensure((1..=2).contains(&direct.connections()), "the one of no_proxy is reached directly")?;
    let mut asked = proxy.asked();
    let mut known = HashSet::new();
    asked.retain(|one| known.insert(one.clone()));
    let expected = ["plain", "inspected", "unrouted"].map(|label| format!("{}:443", host(label)));
    ensure(asked == expected, format!("{asked:?}"))?;
    ensure(net.names.asked(&host("refused")) == 0, "a refused name was asked for")?;
    net.viv_ok(&["rm", "-f", &sandbox]).map(|_| ())
}

fn unusable(net: &Net) -> Case {
    let site = net.site("site.unusable.example", How::default(), echo())?;
    let (name, sandbox) = ("unusable", "shell-unusable");
    let variables = [("https_proxy", "socks4://198.51.100.9:3128")];
    session(net, name, &variables, "true")?;
    net.viv_ok(&["policy", "allow", "--sandbox", sandbox, "*.unusable.example:443"])?;
    let said =
        session(net, name, &variables, "curl -sS -m 60 https://site.unusable.example/ 2>/dev/null; echo $?")?;
    ensure(said.text() == "7" && site.connections() == 0, format!("{said:?}"))?;
    eventually("the reason in the log", || {
        net.viv_ok(&["policy", "log", "--json", sandbox])
            .is_ok_and(|log| log.contains("begins with http://, https:// or socks5://"))
    })?;
    net.viv_ok(&["rm", "-f", sandbox]).map(|_| ())
}
