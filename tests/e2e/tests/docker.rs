//! Point 2: Docker from the first moment, the guest's own kernel, the tools, the clock.

use std::time::{SystemTime, UNIX_EPOCH};

use e2e::{Case, World, ensure};

use crate::Named;

pub(crate) const CASES: &[Named] = &[
    ("the_first_docker_command_waits_and_works", first_command),
    ("a_shell_does_not_wait_for_docker", shell_first),
    ("build_and_run_from_scratch", build_and_run),
    ("two_services_of_a_compose_file_talk", compose),
    ("the_kernel_is_the_guests_own", kernel),
    ("the_tools_are_there", tools),
    ("python_and_node_and_gcc_work", languages),
    ("the_clock_is_right", clock),
];

/// Right after a start: the daemon cannot be up yet, and the command does not fail.
fn first_command(world: &World) -> Case {
    let folder = world.project("main");
    world.shell_ok(&folder, "true")?;
    world.run(&["stop", "shell-main"])?;
    let said = world.shell_ok(&folder, "docker version --format '{{.Server.Os}}'")?;
    ensure(said == "linux", said)
}

/// The shell is there before dockerd says that it is. The two start side by side, so one of several starts is enough; a
/// shell that waited would never be first.
fn shell_first(world: &World) -> Case {
    let script = "log=/var/log/vivarium/dockerd.log; sudo grep -qs 'API listen on' $log && echo later || echo first; \
                  docker version >/dev/null; sudo grep -c 'API listen on' $log";
    let mut said = String::new();
    for _ in 0..3 {
        world.run(&["rm", "-f", "shell-first"])?;
        said = world.shell_ok(&world.project("first"), script)?;
        if said == "first\n1" {
            return world.run(&["rm", "-f", "shell-first"]).map(|_| ());
        }
    }
    ensure(false, said)
}

fn build_and_run(world: &World) -> Case {
    let folder = world.project("main");
    let script = r#"set -e
rm -rf image && mkdir image && cd image
cat > hello.c <<'C'
#include <stdio.h>
int main(void) { puts("hello from a container"); return 3; }
C
gcc -static -O1 -o hello hello.c
printf 'FROM scratch\nCOPY hello /hello\nENTRYPOINT ["/hello"]\n' > Dockerfile
docker build -q -t e2e-hello . >/dev/null
docker run --rm e2e-hello && code=0 || code=$?
echo "code $code""#;
    let said = world.shell_ok(&folder, script)?;
    ensure(said == "hello from a container\ncode 3", said)
}

fn compose(world: &World) -> Case {
    let folder = world.project("compose");
    let script = r#"set -e
(cd / && tar c usr/bin/python3 usr/bin/python3.* usr/lib/python3* lib64 usr/lib64 usr/lib/x86_64-linux-gnu bin lib 2>/dev/null) | docker import - e2e-python >/dev/null
cat > compose.yaml <<'Y'
services:
  server:
    image: e2e-python
    command: ["/usr/bin/python3", "-c", "import http.server as h; H=type('H',(h.BaseHTTPRequestHandler,),{'do_GET':lambda s:(s.send_response(200),s.end_headers(),s.wfile.write(b'over the network'))}); h.HTTPServer(('',8000),H).serve_forever()"]
  client:
    image: e2e-python
    depends_on: [server]
    command:
      - /usr/bin/python3
      - -c
      - |
        import time, urllib.request
        for _ in range(300):
            try:
                print(urllib.request.urlopen('http://server:8000/').read().decode()); break
            except OSError: time.sleep(0.2)
Y
docker compose up -d --quiet-pull 2>&1
docker wait compose-client-1 >/dev/null
docker compose logs --no-log-prefix client
docker compose down -t 1 >/dev/null 2>&1"#;
    let said = world.shell_ok(&folder, script)?;
    ensure(said.contains("over the network"), said)
}

fn kernel(world: &World) -> Case {
    let folder = world.project("main");
    let consoles = world.shell_ok(&folder, "sudo cat /proc/consoles")?;
    // The serial port is for early messages only.
    ensure(consoles.lines().count() == 1 && consoles.starts_with("hvc0 "), consoles)?;
    let guest = world.shell_ok(&folder, "uname -r; cat /proc/sys/kernel/random/boot_id")?;
    let host = rustix::system::uname();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    ensure(!guest.contains(boot.trim()), "the guest shows the host's kernel")?;
    ensure(guest.contains("cloud-amd64"), format!("{guest}, on {:?}", host.release()))
}

fn tools(world: &World) -> Case {
    let folder = world.project("main");
    let script = "for tool in apt-get sudo git curl node npm python3 pip gcc make rg jq docker; do command -v $tool >/dev/null || echo missing $tool; done; \
                  node -p 'parseInt(process.versions.node) >= 24'; docker compose version >/dev/null && docker buildx version >/dev/null && echo plugins; \
                  ls -d /usr/share/man/man1";
    let said = world.shell_ok(&folder, script)?;
    // Without a place for their manuals packages with alternatives cannot be installed.
    ensure(said == "true\nplugins\n/usr/share/man/man1", said)
}

fn languages(world: &World) -> Case {
    let folder = world.project("main");
    let script = r#"set -e
python3 -m venv /tmp/venv && /tmp/venv/bin/python -c 'print(sum(range(1000)))'
/tmp/venv/bin/pip --version | cut -d' ' -f1
node -e 'console.log([1,2,3].map(x => x * x).join())'
printf '#include <math.h>\n#include <stdio.h>\nint main(int c, char **v) { printf("%%.3f\\n", sqrt(c + 1.0)); }' > /tmp/m.c
gcc -O2 -o /tmp/m /tmp/m.c -lm && /tmp/m"#;
    let said = world.shell_ok(&folder, script)?;
    ensure(said == "499500\npip\n1,4,9\n1.414", said)
}

fn clock(world: &World) -> Case {
    let folder = world.project("main");
    // The second is the time at which PID 1 made Docker's socket, before there was any other process.
    let said = world.shell_ok(&folder, "date +%s; stat -c %Y /run/docker.sock")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let times: Vec<u64> = said.lines().filter_map(|line| line.parse().ok()).collect();
    // Within a minute: that it is set, not how exactly.
    ensure(
        times.len() == 2
            && times.iter().all(|time| now.abs_diff(*time) < 3600)
            && now.abs_diff(times[0]) < 60,
        format!("{said} at {now}"),
    )
}
