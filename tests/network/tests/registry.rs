//! A real registry of images, Debian's `docker-registry`, pushed to and pulled from by the guest's Docker daemon.

use std::net::TcpStream;
use std::process::Child;

use e2e::{Case, Verdict, end, ensure, eventually};
use network::{Named, Net};

pub(crate) const CASES: &[Named] =
    &[("images_are_pushed_and_pulled_and_a_rule_on_methods_lets_none_be_pushed", images)];

const HOST: &str = "registry.example";
const PORT: u16 = 5000;

/// A small image that says a word, with more in it than any buffer holds.
const MAKE: &str = r#"set -e
head -c 6000000 /dev/urandom > /tmp/noise
cd / && tar ch usr/bin/echo lib64/ld-linux-x86-64.so.2 lib/x86_64-linux-gnu/libc.so.6 tmp/noise |
    docker import --change 'CMD ["/usr/bin/echo", "from the image"]' - registry.example:5000/team/word:1 >/dev/null
echo other > /tmp/noise
tar c /tmp/noise 2>/dev/null | docker import - registry.example:5000/team/other:1 >/dev/null
"#;

/// The registry, ended with the case.
struct Registry(Option<Child>);

impl Drop for Registry {
    fn drop(&mut self) {
        if let Some(child) = self.0.take() {
            end(child);
        }
    }
}

fn start(net: &Net) -> Result<Registry, Verdict> {
    let mut command = network::registry_program()?;
    let address = net.address(false);
    net.names.addresses(HOST, &[address]);
    let certificate = net.authority.certify(&[HOST]).map_err(|error| network::wrong(&error))?;
    let folder = net.scratch().join("registry");
    std::fs::create_dir(&folder)?;
    let path = |name: &str| folder.join(name).display().to_string();
    std::fs::write(path("certificate.pem"), &certificate.pem)?;
    std::fs::write(path("key.pem"), certificate.key_pem())?;
    let settings = format!(
        "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
         http:\n  addr: {address}:{PORT}\n  tls:\n    certificate: {}\n    key: {}\n",
        path("images"),
        path("certificate.pem"),
        path("key.pem"),
    );
    std::fs::write(path("settings.yml"), settings)?;
    let log = std::fs::File::create(path("log"))?;
    command.args(["serve", &path("settings.yml")]).stdout(log.try_clone()?).stderr(log);
    let registry = Registry(Some(command.spawn()?));
    eventually("docker-registry answers", || TcpStream::connect((address, PORT)).is_ok()).map_err(|_| {
        Verdict::Wrong(format!(
            "docker-registry: {}",
            std::fs::read_to_string(path("log")).unwrap_or_default()
        ))
    })?;
    Ok(registry)
}

fn images(net: &Net) -> Case {
    let _registry = start(net)?;
    net.guest_ok(MAKE)?;
    let image = format!("{HOST}:{PORT}/team/word:1");
    let said = net.guest(&format!("docker push -q {image}"))?;
    ensure(said.code != 0, "pushed without a rule")?;
    net.allow(&[&format!("{HOST}:{PORT}")])?;
    let said = net.guest(&format!("docker push -q {image}"))?;
    ensure(said.code == 0, format!("{said:?}"))?;
    let forget = format!("docker rmi -f {image} >/dev/null");
    let said =
        net.guest_ok(&format!("{forget}; docker pull -q {image} >/dev/null && docker run --rm {image}"))?;
    ensure(said == "from the image", said)?;
    // Looked into: it can be read and not be written to.
    net.deny(&["--method", "POST,PUT,PATCH,DELETE", &format!("{HOST}:{PORT}")])?;
    let said =
        net.guest_ok(&format!("{forget}; docker pull -q {image} >/dev/null && docker run --rm {image}"))?;
    ensure(said == "from the image", said)?;
    let said = net.guest(&format!("docker push -q {HOST}:{PORT}/team/other:1"))?;
    ensure(said.code != 0, format!("pushed against the rule: {said:?}"))?;
    net.recorded(HOST, "the refused push", |record| record["method"] == "POST" && record["status"] == 403)
        .map(|_| ())
}
