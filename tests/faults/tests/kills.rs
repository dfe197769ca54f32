//! `kill -9` of the vmm or the shim at random moments, under a journal writer and Docker at work.

use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use e2e::{Case, Dice, Verdict, World, ensure, eventually};
use faults::{Journal, base_checksum, check, kill, processes};

use crate::Named;

pub(crate) const CASES: &[Named] = &[
    ("what_was_durable_is_there_after_every_kill", durable),
    ("a_killed_client_ends_only_its_command", client),
];

const NAME: &str = "shell-kills";

/// How many kills: many only when long runs were asked for. `VIV_FAULTS_KILLS` sets another number.
fn count() -> u64 {
    let asked = std::env::var("VIV_FAULTS_KILLS").ok().and_then(|text| text.parse().ok());
    asked.unwrap_or(if e2e::long_cases() { 200 } else { 5 })
}

/// Builds and runs containers for ever. The first image is there from the first start on, and durable.
const DOCKER: &str = r#"set -e
mkdir -p ~/load && cd ~/load
i=0
while :; do
    i=$((i + 1))
    date +%N > changing
    printf 'FROM faults-first\nCOPY changing /changing\n' > Dockerfile
    docker build -q -t faults-load . >/dev/null
    [ "$(docker run --rm faults-load)" = hello ]
    docker image prune -f >/dev/null
    echo "$i"
done"#;

const FIRST_IMAGE: &str = r#"set -e
mkdir -p ~/first && cd ~/first
printf '#include <stdio.h>\nint main(void) { puts("hello"); return 0; }' > hello.c
gcc -static -O1 -o hello hello.c
printf 'FROM scratch\nCOPY hello /hello\nENTRYPOINT ["/hello"]\n' > Dockerfile
docker build -q -t faults-first . >/dev/null
docker run --rm faults-first
sudo sync -f /var/lib/docker && sync -f ~"#;

fn durable(world: &World) -> Case {
    let mut dice = Dice::new();
    let project = world.project("kills");
    ensure(world.shell_ok(&project, FIRST_IMAGE)? == "hello", "the first image runs")?;
    let base = base_checksum(world, NAME)?;
    let id = id_of(world)?;
    let mut journal = Journal::new(&project)?;
    let kills = count();
    for round in 1..=kills {
        let before = journal.last;
        let told = one(world, &mut dice, round, &id, &mut journal).and_then(|()| {
            journal.check(world)?;
            if round.is_multiple_of(10) || round == kills {
                docker_works(world)?;
                world.run(&["stop", NAME])?;
                check(world, NAME)?;
            }
            Ok(())
        });
        told.map_err(|verdict| match verdict {
            Verdict::Wrong(what) => Verdict::Wrong(format!("after kill {round}: {what}")),
            skipped => skipped,
        })?;
        if round.is_multiple_of(10) {
            eprintln!(
                "kill {round}: {} records, the last {} of them since",
                journal.last,
                journal.last - before
            );
        }
    }
    ensure(journal.last > 10 * kills, format!("{} records are no load", journal.last))?;
    ensure(base_checksum(world, NAME)? == base, "the base image has changed")?;
    world.run(&["rm", "-f", NAME]).map(|_| ())
}

fn id_of(world: &World) -> Result<String, Verdict> {
    Ok(world.folder(NAME)?.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

/// One kill: while it boots, while the journal is written, or while Docker works, too.
fn one(world: &World, dice: &mut Dice, round: u64, id: &str, journal: &mut Journal) -> Case {
    let writer = journal.write(world)?;
    eventually("the sandbox's processes", || processes(id).is_some_and(|found| found.vmm.is_some()))?;
    let mut load = None;
    match round % 5 {
        // At any moment of the boot, or just after.
        0 => drop(dice.wait(Duration::from_secs(4))),
        1..=3 => {
            writer.wait()?;
            dice.wait(Duration::from_secs(4));
        }
        // With a container built or run at that moment.
        _ => {
            writer.wait()?;
            let started = Load::start(world)?;
            eventually("a container of the load", || started.has_run())?;
            load = Some(started);
            dice.wait(Duration::from_secs(4));
        }
    }
    let Some(found) = processes(id) else { return ensure(false, "the sandbox ended by itself") };
    let vmm = found.vmm.filter(|_| dice.below(2) == 0);
    kill(vmm.unwrap_or(found.shim));
    drop(load);
    writer.end(journal)
}

/// Docker at work in the sandbox.
struct Load {
    client: Child,
    has_run: Arc<AtomicBool>,
}

impl Load {
    fn start(world: &World) -> Result<Self, Verdict> {
        let mut client = world
            .viv(&world.project("kills"), ["exec", NAME, "sh", "-c", DOCKER])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let out = client.stdout.take().ok_or_else(|| Verdict::Wrong("the client has no output".into()))?;
        let has_run = Arc::new(AtomicBool::new(false));
        let heard = has_run.clone();
        std::thread::spawn(move || {
            use std::io::BufRead;
            for _line in std::io::BufReader::new(out).lines().map_while(Result::ok) {
                heard.store(true, Ordering::SeqCst);
            }
        });
        Ok(Self { client, has_run })
    }

    fn has_run(&self) -> bool {
        self.has_run.load(Ordering::SeqCst)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

/// The image that was durable runs, and a new one can be built.
fn docker_works(world: &World) -> Case {
    let script = r#"set -e
docker run --rm faults-first
cd ~/first && date +%N > new && printf 'FROM faults-first\nCOPY new /new\n' | docker build -q -t faults-new -f - . >/dev/null
docker run --rm faults-new"#;
    let said = world.shell_ok(&world.project("kills"), script)?;
    ensure(said == "hello\nhello", format!("Docker after the kill: {said}"))
}

/// The other session of the sandbox goes on, the command of the killed client is hung up on.
fn client(world: &World) -> Case {
    let project = world.project("client");
    world.shell_ok(&project, "true")?;
    let start = |script: &str| {
        world
            .viv(&project, ["exec", "shell-client", "sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
    };
    let other = start("while [ ! -e /tmp/go ]; do sleep 0.1; done; echo on")?;
    let mut killed = start("touch /tmp/there; exec sleep 98765")?;
    let there = |script: &str| {
        world.run(&["exec", "shell-client", "sh", "-c", script]).is_ok_and(|said| said.code == 0)
    };
    eventually("the command", || there("test -e /tmp/there"))?;
    killed.kill()?;
    killed.wait()?;
    eventually("the end of the killed client's command", || there("! pgrep -f 'sleep 9876[5]'"))?;
    ensure(there("touch /tmp/go"), "the sandbox goes on")?;
    let said = e2e::Said::from(other.wait_with_output()?);
    ensure(said.code == 0 && said.text() == "on", format!("the other session: {said:?}"))?;
    world.run(&["rm", "-f", "shell-client"]).map(|_| ())
}
