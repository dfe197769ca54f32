//! An evil guest achieves nothing: one guest after the other drives every virtio device and the chipset with garbage, in
//! the real confined vmm, with one vCPU and with two; a sandbox beside it must answer all the time, if this machine has an image.
//! 20 s in a normal run, an hour with `VIV_TESTS=all`; `VIV_EVIL_SECONDS` chooses. Half of the time belongs to a single guest (the
//! next if it ends itself), whose vmm must not grow. On KVM, where it can be used, for a sixth of the time and at least 30 s.
//! `VIV_EVIL_SEED` repeats a seed that a failure named.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use e2e::{World, long_cases};
use hostile::evil::{Bait, Counted, DEVICES, Form, LONG_ENOUGH, Outcome, Ran, compile, run};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use sandbox::engine::Engine;

/// Chains that each device must have given back in each form, and those that the disk and the file server must have done as
/// asked: without them nothing was attacked. A run of seconds has many times as many, but on a KVM that emulates kernel code.
fn least(form: Form) -> u64 {
    match form.engine {
        Engine::Soft => 30,
        Engine::Kvm => 3,
    }
}

/// How long guests may go on beyond their time until every device was reached: a KVM that emulates kernel code takes a few
/// hundred steps in seconds, and which devices those meet is the seed's choice.
const UNTIL_REACHED: Duration = Duration::from_secs(240);

/// Steps that a guest takes in less than a tenth of a second.
const STEPS: u64 = 1024;

/// How long the sandbox beside may take for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let soft = |cpus| Form { engine: Engine::Soft, cpus };
    let kvm = |cpus| Form { engine: Engine::Kvm, cpus };
    let trials = vec![
        Trial::ignorable_test("an_evil_guest_achieves_nothing", move || attack([soft(1), soft(2)], length())),
        Trial::ignorable_test("an_evil_guest_on_kvm_achieves_nothing", move || {
            attack([kvm(1), kvm(2)], (length() / 6).max(Duration::from_secs(30)))
        }),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn length() -> Duration {
    Duration::from_secs(number("VIV_EVIL_SECONDS").unwrap_or(if long_cases() { 3600 } else { 20 }))
}

fn attack(forms: [Form; 2], all: Duration) -> Result<Completion, Failed> {
    if forms[0].engine == Engine::Kvm
        && std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err()
    {
        return Ok(Completion::ignored_with("/dev/kvm cannot be opened"));
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap_or(Path::new("/var/tmp"));
    let world = World::new(target)?;
    let folder = world.project("evil");
    let neighbour = Neighbour::start(&world)?;
    let mut attack = Attack {
        guest: compile(&folder, forms[0].engine)?,
        folder,
        forms,
        sums: [Counted::default(); 2],
        guests: 0,
        early: 0,
        longest: Duration::ZERO,
        seed: number("VIV_EVIL_SEED").unwrap_or(1),
    };
    let outcome = attack.last(&world, neighbour.as_ref(), all);
    let answers = neighbour.map_or(Ok(0), Neighbour::end);
    world.clean_up();
    if let Some(why) = outcome? {
        return Ok(Completion::ignored_with(why));
    }
    println!(
        "{} guests, {} of which ended themselves at once, the longest {:?}; {} answers of a neighbour",
        attack.guests, attack.early, attack.longest, answers?
    );
    attack.reached()?;
    // Growth shows in a long life only.
    if all > LONG_ENOUGH * 10 && attack.longest < LONG_ENOUGH {
        return Err(format!("no guest lived longer than {:?}", attack.longest).into());
    }
    Ok(Completion::Completed)
}

/// One guest after the other, and what came of them.
struct Attack {
    guest: PathBuf,
    folder: PathBuf,
    forms: [Form; 2],
    sums: [Counted; 2],
    guests: u64,
    /// Those that ended themselves before they had done anything to speak of.
    early: u64,
    longest: Duration,
    seed: u64,
}

impl Attack {
    /// Attacks for this long, and on until every device was reached; gives the reason if this host has no such machine. Most
    /// defects show early, with a new seed; a leak shows late.
    fn last(
        &mut self,
        world: &World,
        beside: Option<&Neighbour>,
        all: Duration,
    ) -> Result<Option<String>, Failed> {
        let begun = Instant::now();
        let one = (all / 6).clamp(Duration::from_secs(1), Duration::from_secs(150));
        loop {
            let (form, time) = if begun.elapsed() < all / 2 {
                (self.guests as usize % 2, one)
            } else if let Some(left) = all.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) {
                (1, left)
            } else if let Some((form, what)) =
                self.missing().filter(|_| begun.elapsed() < all + UNTIL_REACHED)
            {
                println!("{what}: another guest");
                (form, one)
            } else {
                return Ok(None);
            };
            let answers = beside.map_or(Ok(0), Neighbour::answers)?;
            let outcome = match self.guest(world, form, time)? {
                Ran::Held(outcome) => outcome,
                Ran::NoMachine(why) => return Ok(Some(why)),
            };
            // Real processors run whatever is an instruction; some KVMs emulate kernel code, and not all of it.
            if let Some(why) = outcome.ended.as_ref().filter(|_| self.forms[form].engine == Engine::Kvm)
                && why.contains("could not emulate")
                && self.sums[form].and(&outcome.counted).done.iter().all(|done| *done == 0)
            {
                return Ok(Some(why.clone()));
            }
            let more = beside.map_or(Ok(1), Neighbour::answers)?;
            if outcome.time > PATIENCE && more <= answers {
                return Err("the sandbox beside it did not answer while it ran".into());
            }
            self.sums[form] = self.sums[form].and(&outcome.counted);
            self.guests += 1;
            self.early += u64::from(outcome.ended.is_some() && outcome.counted.steps < STEPS);
            self.longest = self.longest.max(outcome.time);
            self.seed += 1;
        }
    }

    fn guest(&self, world: &World, form: usize, time: Duration) -> Result<Ran, Failed> {
        let bait = self.folder.join("bait");
        let _ = std::fs::remove_dir_all(&bait);
        let bait = Bait::lay(&bait)?;
        let (form, seed) = (self.forms[form], self.seed);
        let ran = run(world.program(), &self.guest, &bait, (form, seed), time)
            .map_err(|what| format!("{form:?}, seed {seed} (VIV_EVIL_SEED={seed} begins with it): {what}"))?;
        if let Ran::Held(Outcome { counted, most, time, ended }) = &ran {
            println!("{form:?}, seed {seed}: {time:?}, {counted:?}, {most:?}, {ended:?}");
        }
        Ok(ran)
    }

    /// The first of the forms that has not attacked everything, and what it has not.
    fn missing(&self) -> Option<(usize, String)> {
        for (at, (form, sum)) in self.forms.iter().zip(&self.sums).enumerate() {
            let least = least(*form);
            for (device, name) in DEVICES.iter().enumerate().skip(1) {
                let least_well = if matches!(*name, "disk" | "files") { least } else { 0 };
                if sum.done[device] < least || sum.well[device] < least_well {
                    return Some((at, format!("{form:?} hardly reached the device {name}: {sum:?}")));
                }
            }
            if form.cpus > 1 && sum.rounds < 100 {
                return Some((at, format!("the second processor of {form:?} hardly ran: {sum:?}")));
            }
        }
        None
    }

    /// Fails if a device was not reached, or hardly any guest lived.
    fn reached(&self) -> Result<(), Failed> {
        if let Some((_, what)) = self.missing() {
            return Err(what.into());
        }
        // By chance a guest powers its machine off, or breaks itself; most must have attacked for a while before.
        if self.early * 4 > self.guests {
            return Err(format!("{} of {} guests ended themselves at once", self.early, self.guests).into());
        }
        Ok(())
    }
}

/// A sandbox beside the evil one, with a session that is asked every second.
struct Neighbour {
    viv: Child,
    asking: Option<std::thread::JoinHandle<()>>,
    known: Arc<Mutex<Known>>,
}

/// What is known of it.
struct Known {
    answers: u64,
    last: Instant,
    wrong: Option<String>,
    enough: bool,
}

impl Neighbour {
    /// Starts it, and waits for its first answer; `None` where there is no image.
    fn start(world: &World) -> Result<Option<Self>, Failed> {
        let images = world.cache().join("images");
        if !std::fs::read_dir(&images).is_ok_and(|mut entries| entries.next().is_some()) {
            println!("there is no image for a sandbox beside it");
            return Ok(None);
        }
        let folder = world.project("neighbour");
        let script = "while read -r line; do echo \"$line\"; done";
        let mut viv = world
            .viv(&folder, ["run", "shell", ".", "--engine", "soft", "--cpus", "1", "--", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(to), Some(from)) = (viv.stdin.take(), viv.stdout.take()) else {
            return Err("no pipes".into());
        };
        let (mut to, mut from) = (to, BufReader::new(from));
        ask(&mut to, &mut from, 0)?;
        let known = Known { answers: 1, last: Instant::now(), wrong: None, enough: false };
        let known = Arc::new(Mutex::new(known));
        let heard = known.clone();
        let asking = Some(std::thread::spawn(move || keep_asking(to, from, &heard)));
        Ok(Some(Self { viv, asking, known }))
    }

    /// How often it has answered; fails if it does not any more.
    fn answers(&self) -> Result<u64, Failed> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match &known.wrong {
            Some(what) => Err(format!("the sandbox beside it: {what}").into()),
            None if known.last.elapsed() > PATIENCE => Err("the sandbox beside it does not answer".into()),
            None => Ok(known.answers),
        }
    }

    fn end(mut self) -> Result<u64, Failed> {
        let answers = self.answers();
        self.known.lock().unwrap_or_else(PoisonError::into_inner).enough = true;
        if answers.is_err() {
            let _ = self.viv.kill();
        }
        let _ = self.asking.take().map(std::thread::JoinHandle::join);
        let status = self.viv.wait()?;
        let answers = answers?;
        if status.success() {
            Ok(answers)
        } else {
            Err(format!("the session beside it ended with {status}").into())
        }
    }
}

fn ask(to: &mut ChildStdin, from: &mut BufReader<ChildStdout>, number: u64) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    writeln!(to, "{number}").map_err(text)?;
    let mut line = String::new();
    from.read_line(&mut line).map_err(text)?;
    if line == format!("{number}\n") { Ok(()) } else { Err(format!("asked for {number} it said {line:?}")) }
}

/// Asks every second until it is enough. Its input is closed then, which ends the session.
fn keep_asking(mut to: ChildStdin, mut from: BufReader<ChildStdout>, known: &Mutex<Known>) {
    for number in 1.. {
        std::thread::sleep(Duration::from_secs(1));
        let answer = ask(&mut to, &mut from, number);
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(()) => (known.answers, known.last) = (known.answers + 1, Instant::now()),
            Err(what) => known.wrong = Some(what),
        }
        if known.enough || known.wrong.is_some() {
            return;
        }
    }
}
