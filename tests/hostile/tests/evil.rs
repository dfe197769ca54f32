//! An evil guest achieves nothing: one guest after the other drives every virtio device and the chipset with garbage, in
//! the real confined vmm. 20 s in a normal run, an hour with `VIV_TESTS=all`; `VIV_EVIL_SECONDS` chooses. `VIV_EVIL_SEED`
//! repeats a seed that a failure named. Meanwhile a sandbox beside it keeps answering, if this machine has an image.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use e2e::{Verdict, World, long_cases, say};
use hostile::evil::{Bait, compile, run};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let trials = vec![Trial::test("an_evil_guest_achieves_nothing", achieves_nothing)];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn achieves_nothing() -> Result<(), Failed> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap_or(Path::new("/var/tmp"));
    let world = World::new(target)?;
    let folder = world.project("evil");
    let guest = compile(&folder)?;
    let all = Duration::from_secs(number("VIV_EVIL_SECONDS").unwrap_or(if long_cases() { 3600 } else { 20 }));
    // Most defects show early, a leak shows late.
    let one = (all / 3).clamp(Duration::from_secs(1), Duration::from_secs(300));
    let neighbour = Neighbour::start(&world)?;
    let begun = Instant::now();
    let (mut steps, mut guests) = (0u64, 0u64);
    let mut seed = number("VIV_EVIL_SEED").unwrap_or(1);
    while begun.elapsed() < all {
        let bait = folder.join("bait");
        let _ = std::fs::remove_dir_all(&bait);
        let bait = Bait::lay(&bait)?;
        let time = one.min(all.saturating_sub(begun.elapsed()));
        let outcome = run(world.program(), &guest, &bait, seed, time)
            .map_err(|what| format!("seed {seed} (VIV_EVIL_SEED={seed} repeats it): {what}"))?;
        println!("seed {seed}: {outcome:?}");
        neighbour.answers(&world)?;
        steps += outcome.steps;
        guests += 1;
        seed += 1;
    }
    println!(
        "{guests} guests, {steps} steps in {} s; a neighbour: {}",
        begun.elapsed().as_secs(),
        neighbour.0
    );
    world.clean_up();
    if steps == 0 {
        return Err("no guest came so far as to do anything".into());
    }
    Ok(())
}

/// A sandbox beside the evil one, or none where there is no image.
struct Neighbour(bool);

impl Neighbour {
    fn start(world: &World) -> Result<Self, Failed> {
        let images = world.cache().join("images");
        let there = std::fs::read_dir(&images).is_ok_and(|mut entries| entries.next().is_some());
        let neighbour = Self(there);
        neighbour.answers(world)?;
        Ok(neighbour)
    }

    fn answers(&self, world: &World) -> Result<(), Failed> {
        if !self.0 {
            return Ok(());
        }
        let folder = world.project("neighbour");
        let arguments = ["run", "shell", ".", "--engine", "soft", "--", "-c", "echo here"];
        match say(world.viv(&folder, arguments), b"") {
            Ok(said) if said.text() == "here" => Ok(()),
            Ok(said) => Err(format!("the sandbox beside it said {:?} and {}", said.text(), said.err).into()),
            Err(Verdict::Wrong(what) | Verdict::Skipped(what)) => Err(what.into()),
        }
    }
}
