//! git over HTTPS with a token that the guest never has.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use e2e::{Case, Verdict, ensure, say};
use http::header::AUTHORIZATION;
use network::search::{Places, find, forms};
use network::{How, NAME, Named, Net, Repositories};

pub(crate) const CASES: &[Named] =
    &[("a_clone_and_a_push_by_rules_with_a_token_that_is_not_in_the_guest", token)];

const HOST: &str = "forge.example";

/// A value that nothing else can hold.
fn random(prefix: &str) -> Result<String, Verdict> {
    let mut bytes = [0u8; 24];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes)))
}

fn set_secret(net: &Net, token: &str) -> Case {
    let words = ["secret", "set-custom", "forge", "--host", HOST, "--git-user", "ci", "--env", "FORGE_TOKEN"];
    let said = say(net.world.viv(net.scratch(), words), token.as_bytes())?;
    ensure(said.code == 0 && !format!("{said:?}").contains(token), format!("{said:?}"))
}

fn token(net: &Net) -> Case {
    let repositories = Repositories::new(net.scratch().join("repositories"))?;
    repositories.create("work.git", "README", "hello from the forge\n")?;
    let token = random("tok-")?;
    let site = net.site(HOST, How::default(), repositories.serve(&token))?;
    for (method, path) in [("GET", "/work.git/info/refs"), ("POST", "/work.git/git-upload-pack")] {
        net.allow(&["--method", method, "--path", path, "forge.example:443"])?;
    }
    // Without the secret nobody may clone.
    let clone = format!(
        "cd /tmp && rm -rf work && GIT_TERMINAL_PROMPT=0 git clone -q https://{HOST}/work.git && cat work/README"
    );
    let said = net.guest(&clone)?;
    ensure(said.code != 0, format!("cloned without a token: {said:?}"))?;
    set_secret(net, &token)?;
    let said = net.guest(&clone)?;
    ensure(said.text() == "hello from the forge", format!("{said:?}"))?;
    ensure(
        site.seen().iter().any(|one| one.headers.contains_key(AUTHORIZATION)),
        "the server saw a credential",
    )?;
    pushes(net, &repositories)?;
    nowhere(net, &token)?;
    net.viv_ok(&["secret", "rm", "-f", "forge"])?;
    let said = net.guest(&clone)?;
    ensure(said.code != 0, format!("cloned with a token that was removed: {said:?}"))
}

fn pushes(net: &Net, repositories: &Repositories) -> Case {
    let push = "cd /tmp/work && git config user.name a && git config user.email a@a.example && \
                git commit -q --allow-empty -m second && git push -q origin main";
    let said = net.guest(push)?;
    ensure(said.code != 0 && said.err.contains("403"), format!("{said:?}"))?;
    ensure(repositories.newest("work.git")? == "first", "nothing was pushed")?;
    net.recorded(HOST, "the refused push", |record| {
        record["path"] == "/work.git/git-receive-pack" && record["status"] == 403
    })?;
    net.allow(&["--method", "POST", "--path", "/work.git/git-receive-pack", "forge.example:443"])?;
    let said = net.guest("cd /tmp/work && git push -q origin main")?;
    ensure(said.code == 0, format!("{said:?}"))?;
    ensure(repositories.newest("work.git")? == "second", "it was pushed")
}

/// The token is in no memory, file or variable of the guest's; what the guest has is found in the same places.
fn nowhere(net: &Net, token: &str) -> Case {
    let marker = random("mark-")?;
    let script = format!(
        "echo on-disk-{marker} > /home/agent/marker && sync && (IN_MEMORY=in-memory-{marker} setsid sleep 300 >/dev/null 2>&1 &) \
         && for i in $(seq 300); do grep -qsa in-memory-{marker} /proc/[0-9]*/environ && break; sleep 0.1; done \
         && sudo sh -c 'cat /proc/[0-9]*/environ /home/agent/.git* /tmp/work/.git/config 2>/dev/null' || true"
    );
    let said = net.guest(&script)?;
    ensure(said.text().contains("FORGE_TOKEN=") && said.text().contains(&marker), "no environment")?;
    ensure(!said.text().contains(token), "the token is in an environment")?;
    let places = Places::of(net, NAME)?;
    let on = |files, text: &str| find(files, &forms(text));
    ensure(on(&places.memory, &format!("in-memory-{marker}"))?.is_some(), "memory cannot be searched")?;
    ensure(on(&places.files, &format!("on-disk-{marker}"))?.is_some(), "the disk cannot be searched")?;
    for files in [&places.memory, &places.files] {
        if let Some(place) = on(files, token)? {
            return Err(Verdict::Wrong(format!("the token is in {place}")));
        }
    }
    Ok(())
}
