//! A service of the host's loopback, by a rule that names its port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use e2e::{Case, ensure};
use network::{How, NAME, Named, Net, echo};

pub(crate) const CASES: &[Named] =
    &[("a_service_of_the_host_is_reached_by_its_names_and_no_other_port_is", by_name)];

/// An image with what `curl` needs and nothing else.
const IMAGE: &str = "cd / && tar ch usr/bin/curl lib64/ld-linux-x86-64.so.2 $(ldd /usr/bin/curl | grep -o '/lib/[^ ]*') 2>/dev/null | \
                     docker import - curl >/dev/null";

fn by_name(net: &Net) -> Case {
    let at = |address: IpAddr, port| {
        net.site_at("localhost", address, How { port: Some(port), alpn: &[], six: false }, echo())
    };
    let service = at(Ipv4Addr::LOCALHOST.into(), 8090)?;
    let six = at(Ipv6Addr::LOCALHOST.into(), 8091)?;
    let other = at(Ipv4Addr::LOCALHOST.into(), 8092)?;
    let get = |host: &str, port: u16| format!("curl -sS -m 60 http://{host}:{port}/; echo $?");
    // The name alone opens nothing; the refusal says how that one port is allowed.
    let hint = net.told(&get("host.viv.internal", 8090), "localhost:8090  (")?;
    let remedy = format!("allow: viv policy allow --sandbox {NAME} localhost:8090");
    ensure(hint.contains(&remedy), hint)?;
    let said = net.guest(&get("host.viv.internal", 8090))?;
    ensure(said.text() == "7", format!("reached without a rule: {said:?}"))?;
    net.allow(&["localhost:8090,localhost:8091"])?;
    for host in ["host.viv.internal", "host.docker.internal"] {
        for port in [8090, 8091] {
            let said = net.guest(&get(host, port))?;
            ensure(said.text() == "GET / HTTP/1.1\n0", format!("{host}:{port}: {said:?}"))?;
        }
        let said = net.guest(&get(host, 8092))?;
        ensure(said.text() == "7", format!("{host}:8092: {said:?}"))?;
    }
    // The guest's own loopback stays its own, and the host's is reached by no address.
    for host in ["localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"] {
        let said = net.guest(&get(host, 8090))?;
        ensure(said.text() == "7", format!("{host}: {said:?}"))?;
    }
    // Nor by a name of somebody else's that resolves to it.
    net.names.addresses("loop.example", &[Ipv4Addr::LOCALHOST.into()]);
    net.allow(&["loop.example:8090"])?;
    let said = net.guest(&get("loop.example", 8090))?;
    ensure(said.text() == "7", format!("{said:?}"))?;
    let said = net.guest_ok(&format!(
        "{IMAGE}; docker run --rm curl /usr/bin/curl -sS -m 60 http://host.docker.internal:8090/"
    ))?;
    ensure(said == "GET / HTTP/1.1", said)?;
    ensure(
        (3..=6).contains(&service.connections()) && (2..=4).contains(&six.connections()),
        "each was reached as often as it was asked",
    )?;
    ensure(other.connections() == 0, "a port without a rule was reached")?;
    // Where its requests are looked into, too.
    net.allow(&["--method", "GET", "localhost:8092"])?;
    for host in ["host.viv.internal", "host.docker.internal"] {
        let said =
            net.guest(&format!("{}; {} -d x", get(host, 8092), get(host, 8092).replace("; echo $?", "")))?;
        let text = said.text();
        ensure(
            text.starts_with("GET / HTTP/1.1\n0\n{") && text.contains("denied"),
            format!("{host}: {said:?}"),
        )?;
    }
    net.forget("localhost:8090")?;
    let said = net.guest(&get("host.viv.internal", 8090))?;
    ensure(said.text() == "7", format!("the rule is gone: {said:?}"))
}
