//! Whole guests: ours with its gateway, QEMU's with passt and QEMU's with slirp, each with the same kernel, initramfs, base image and
//! measured program. All processors are software, so that a row is bounded by the guest's processor as often as by its network; what the
//! network costs is said by the CPU that it takes, and what the processor gives by TCP on the guest's own loopback address.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use agent_proto::abi::{self, GATEWAY_IPV4, GUEST_MAC, LINK_MTU, SYNTHETIC_V4, serial};
use anyhow::{Context, Result, bail, ensure};
use sandbox::assets::{Assets, newest_initramfs};
use sandbox::build_vm::{self, Job, JobDisk, JobLink};
use sandbox::engine::Engine;
use sandbox::places::Places;
use tempfile::TempDir;
use vs_tcg::qemu::Machine;

use crate::costs::{self, Costs};
use crate::server::Servers;
use crate::side::{NAME, Network, mac, rules};
use crate::table::{Rows, Unit};

/// The sides, in the table's order.
pub(crate) const COLUMNS: [&str; 3] = [VIV, PASST, SLIRP];
const VIV: &str = "viv";
const PASST: &str = "QEMU, passt";
const SLIRP: &str = "QEMU, slirp";

const CPUS: u32 = 2;
const MEMORY_MIB: u64 = 2048;
/// For the agent, and the switches that `soft` sets anyway, so that all sides run the same kernel code.
const WORDS: [&str; 5] =
    ["viv.script=viv-script", "viv.docker=off", "mitigations=off", "ia32_emulation=0", "tsc=reliable"];
const PROGRAM: &str = include_str!("../guest/flows.c");

/// One boot of each side a time, all rows in it.
pub(crate) fn measure(viv: &Path, times: usize, rows: &mut Rows) -> Result<()> {
    let guest = Guest::prepare()?;
    let servers = Servers::start()?;
    for _ in 0..times {
        for side in COLUMNS {
            guest.boot(viv, side, &servers, rows).with_context(|| side.to_owned())?;
        }
    }
    Ok(())
}

/// What every guest boots.
struct Guest {
    folder: TempDir,
    assets: Assets,
    /// The kernel as QEMU takes it.
    bzimage: PathBuf,
}

impl Guest {
    fn prepare() -> Result<Self> {
        let places = Places::from_env()?;
        let image = store::Store::open(&places.cache)?.base()?.context(
            "there is no base image yet: `cargo run --release -- run shell . -- -c true` makes it",
        )?;
        let initramfs = newest_initramfs(&places.cache)
            .context("there is no initramfs in the cache: start a sandbox once")?;
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let (source, program) = (folder.path().join("flows.c"), folder.path().join("flows"));
        fs::write(&source, PROGRAM)?;
        let gcc = Command::new("gcc").args(["-O2", "-static", "-o"]).arg(&program).arg(&source).status();
        ensure!(gcc.context("cannot start gcc")?.success(), "gcc could not build the measured program");
        pad(&program)?;
        let assets = Assets { kernel: image.kernel.elf, initramfs, base: Some(image.base) };
        Ok(Self { folder, assets, bzimage: image.kernel.bzimage })
    }

    /// Boots one side and does all rows in it.
    fn boot(&self, viv: &Path, side: &'static str, servers: &Servers, rows: &mut Rows) -> Result<()> {
        let host = if side == VIV { NAME.to_owned() } else { GATEWAY_IPV4.to_string() };
        let script = self.folder.path().join("script");
        fs::write(&script, script_for(&host, servers))?;
        pad(&script)?;
        let disks = [(serial::SCRIPT, script), (serial::INPUT, self.folder.path().join("flows"))];
        let mut watch = Watch {
            side,
            network: None,
            started: None,
            servers,
            rows,
            begun: None,
            data: 0,
            error: None,
            over: false,
        };
        match side {
            VIV => {
                let (network, pair) = Network::gateway(viv, rules(&servers.ports())?, &[NAME], Vec::new())?;
                watch.networks(&network);
                let disks =
                    disks.map(|(serial, file)| JobDisk { serial: serial.into(), file, read_only: true });
                let job = Job {
                    assets: &self.assets,
                    disks: &disks,
                    words: WORDS.map(str::to_owned).into(),
                    engine: Engine::Soft,
                    cpus: CPUS,
                    memory: MEMORY_MIB << 20,
                    link: Some(JobLink {
                        memory: pair.memory.as_fd(),
                        bell: pair.guest_bell.as_fd(),
                        far_bell: pair.network_bell.as_fd(),
                    }),
                };
                build_vm::run(&job, &mut |line| watch.hear(line))?;
            }
            PASST => {
                let (network, socket) = Network::passt()?;
                watch.networks(&network);
                let far = format!("stream,id=net,server=off,addr.type=unix,addr.path={}", socket.display());
                self.boot_qemu(&disks, &far, Some(LINK_MTU), &mut watch)?;
            }
            _ => {
                let far = format!("user,id=net,ipv6=off,net={}/24,host={GATEWAY_IPV4}", SYNTHETIC_V4.0);
                // The MTU of its protocol stack is Ethernet's, and QEMU has no setting for another.
                self.boot_qemu(&disks, &far, None, &mut watch)?;
            }
        }
        watch.end()
    }

    fn boot_qemu(
        &self,
        disks: &[(&str, PathBuf); 2],
        far: &str,
        mtu: Option<u16>,
        watch: &mut Watch<'_>,
    ) -> Result<()> {
        let base = self.assets.base.clone().context("the bench has a base image")?;
        let mut all = vec![(serial::BASE.to_owned(), base, true)];
        all.extend(disks.iter().map(|(serial, file)| ((*serial).to_owned(), file.clone(), true)));
        let mut card = format!("virtio-net-pci,netdev=net,romfile=,mac={}", mac(GUEST_MAC));
        if let Some(mtu) = mtu {
            card += &format!(",host_mtu={mtu}");
        }
        // Threads with names, so that vCPUs can be told from the rest.
        let further = ["-name", "bench,debug-threads=on", "-netdev", far, "-device", &card];
        let machine = Machine {
            bzimage: &self.bzimage,
            initramfs: &self.assets.initramfs,
            words: &WORDS.join(" "),
            disks: &all,
            cpus: CPUS,
            memory_mib: MEMORY_MIB,
            further: &further.map(str::to_owned),
        };
        machine.run(&mut |line| watch.hear(line))
    }
}

/// What runs in the guest. The agent has set up the link; the addresses are the same on all sides.
fn script_for(host: &str, servers: &Servers) -> String {
    let Servers { sink, source, echo, gate, .. } = servers;
    format!(
        "ulimit -n 8192
cat /dev/disk/by-id/virtio-{input} >/root/flows && chmod 755 /root/flows
host=$(getent ahostsv4 {host} | head -n 1 | cut -d ' ' -f 1)
cd /root && ./flows idle $host {echo} idle {gate} && ./flows up $host {sink} up && ./flows down $host {source} down &&
./flows requests $host {echo} requests && ./flows connections $host {echo} connections &&
./flows serve && ./flows up 127.0.0.1 9001 own-up && ./flows requests 127.0.0.1 9002 own-requests && echo OVER
",
        input = serial::INPUT
    )
}

/// Block devices have whole sectors.
fn pad(path: &Path) -> Result<()> {
    let file = File::options().write(true).open(path)?;
    let length = file.metadata()?.len();
    Ok(file.set_len(length.next_multiple_of(4096))?)
}

/// Hears a guest's console and measures while it works.
struct Watch<'w> {
    side: &'static str,
    /// The process that is its network; with slirp it is QEMU.
    network: Option<u32>,
    /// The child of this process that is no virtual machine.
    started: Option<u32>,
    servers: &'w Servers,
    rows: &'w mut Rows,
    begun: Option<Begun>,
    /// Bytes of the network's process before the idle flows.
    data: u64,
    error: Option<anyhow::Error>,
    over: bool,
}

/// When a row began.
#[derive(Clone, Copy)]
struct Begun {
    clock: Instant,
    sunk: u64,
    /// CPU of the network's process, where it is one of its own.
    network: Option<Costs>,
    /// CPU of the VMM's threads that run no guest code.
    beside: Costs,
}

impl Watch<'_> {
    fn networks(&mut self, network: &Network) {
        (self.network, self.started) = (Some(network.pid), Some(network.started()));
    }

    fn hear(&mut self, line: &str) {
        if std::env::var_os("VERBOSE").is_some() {
            eprintln!("{:>11} | {line}", self.side);
        }
        let heard = self.heard(line);
        if self.error.is_none() {
            self.error = heard.err();
        }
    }

    fn heard(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["BEGIN", "idle"] => {
                std::thread::sleep(Duration::from_secs(1));
                self.data = costs::data(self.holder()?)?;
            }
            ["BEGIN", _] => self.begun = Some(self.now()?),
            ["END", "idle", count] => {
                std::thread::sleep(Duration::from_secs(2));
                let more = costs::data(self.holder()?)?.saturating_sub(self.data);
                let flows: f64 = count.parse()?;
                self.rows.add(
                    "1,000 idle flows: memory of each",
                    Unit::SmallBytes,
                    self.side,
                    more as f64 / flows,
                );
                self.servers.let_go();
            }
            ["HELD", count] => ensure!(*count == "1000", "only {count} flows stayed"),
            ["END", what, values @ ..] => {
                let now = self.now()?;
                let begun = self.begun.take().context("a row without a beginning")?;
                let values: Vec<f64> = values.iter().map(|value| value.parse()).collect::<Result<_, _>>()?;
                self.row(what, &values, begun, now)?;
            }
            ["FAILED", ..] | [abi::PANIC_LINE, ..] => bail!("in the guest: {line}"),
            ["OVER"] => self.over = true,
            _ => {}
        }
        Ok(())
    }

    fn row(&mut self, what: &str, values: &[f64], begun: Begun, now: Begun) -> Result<()> {
        let value = |index: usize| values.get(index).copied().context("a row without its numbers");
        let seconds = (now.clock - begun.clock).as_secs_f64();
        let own = "the processor alone (the guest's own loopback)";
        match what {
            "up" | "down" => {
                let bytes = if what == "up" { (now.sunk - begun.sunk) as f64 } else { value(0)? };
                let name = format!("TCP {what}");
                self.rows.add(&name, Unit::Gigabits, self.side, bytes * 8e-9 / seconds);
                self.costs(&name, Unit::SecondsPerGib, begun, now, f64::from(1 << 30) / bytes / 1e9);
            }
            "own-up" => {
                self.rows.add(&format!("{own}: TCP"), Unit::Gigabits, self.side, value(0)? * 8e-9 / seconds);
            }
            "requests" | "own-requests" => {
                let name = if what == "requests" {
                    "a request and its answer".to_owned()
                } else {
                    format!("{own}: a request")
                };
                for (part, index) in [("p50", 1), ("p99", 2)] {
                    let row = format!("{name}, {part}");
                    self.rows.add(&row, Unit::Microseconds, self.side, value(index)? / 1e3);
                }
                if what == "requests" {
                    self.costs(&name, Unit::Microseconds, begun, now, 1.0 / value(0)? / 1e3);
                }
            }
            "connections" => {
                let name = "connections with one request each";
                self.rows.add(name, Unit::Rate, self.side, value(0)? / seconds);
                self.costs("a connection", Unit::Microseconds, begun, now, 1.0 / value(0)? / 1e3);
            }
            other => bail!("the guest measured {other}"),
        }
        Ok(())
    }

    /// CPU since a row began, its nanoseconds times `scale`.
    fn costs(&mut self, name: &str, unit: Unit, begun: Begun, now: Begun, scale: f64) {
        let beside = now.beside.since(begun.beside).nanoseconds;
        let mut all = beside;
        if let Some((before, after)) = begun.network.zip(now.network) {
            let used = after.since(before).nanoseconds;
            all += used;
            let row = format!("{name}: CPU of the network's process");
            self.rows.add(&row, unit, self.side, used as f64 * scale);
        }
        let row = format!("{name}: the same and all of the VMM but its vCPUs");
        self.rows.add(&row, unit, self.side, all as f64 * scale);
    }

    fn now(&self) -> Result<Begun> {
        Ok(Begun {
            clock: Instant::now(),
            sunk: self.servers.sunk.load(Ordering::Relaxed),
            network: self.network.map(Costs::of).transpose()?,
            beside: Costs::beside_vcpus(self.vmm()?)?,
        })
    }

    /// The process that keeps the flows.
    fn holder(&self) -> Result<u32> {
        self.network.map_or_else(|| self.vmm(), Ok)
    }

    /// The virtual machine's process.
    fn vmm(&self) -> Result<u32> {
        let mut children = costs::children(std::process::id())?.into_iter();
        children.find(|child| Some(*child) != self.started).context("there is no virtual machine")
    }

    fn end(self) -> Result<()> {
        if let Some(error) = self.error {
            return Err(error);
        }
        ensure!(self.over, "the guest ended before its script did");
        Ok(())
    }
}
