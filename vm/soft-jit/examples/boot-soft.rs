//! Boots a kernel on the software CPU and copies its serial port to standard output; for work on the translator.
//!
//! `boot-soft KERNEL INITRAMFS [CMDLINE] [TUNING | interp]`, with `VCPUS` and `MEM` (MiB) from the environment. Prints counters
//! at the end and after `SECONDS` (default 60) stops the guest.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backends::ConsoleBackend;
use hv_soft::{ExecutorKind, SoftEngine};
use machine::{MachineBuilder, MachineConfig};
use soft_jit::Tuning;

struct Out;
impl ConsoleBackend for Out {
    fn output(&self, bytes: &[u8]) {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(bytes);
        let _ = out.flush();
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let kernel = std::fs::File::open(args.next().ok_or("no kernel")?)?;
    let initramfs = std::fs::File::open(args.next().ok_or("no initramfs")?)?;
    let cmdline =
        args.next().unwrap_or_else(|| "console=ttyS0 earlyprintk=serial,ttyS0,115200 panic=-1".to_owned());
    let tuning = args.next().unwrap_or_default();
    let executor = if tuning == "interp" {
        ExecutorKind::Interpreter
    } else {
        ExecutorKind::Translator(Tuning::parse(&tuning).map_err(|word| format!("unknown word {word}"))?)
    };
    let builder = MachineBuilder::new(MachineConfig {
        vcpus: number("VCPUS", 1) as u32,
        memory_mib: number("MEM", 1024),
        kernel,
        initramfs: Some(initramfs),
        cmdline,
        serial: Arc::new(Out),
        generation_id: [0; 16],
    });
    let machine = builder.build(&SoftEngine::with_executor(executor))?;
    let handle = machine.handle();
    let stopper = handle.clone();
    let seconds = number("SECONDS", 60);
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(seconds));
        stopper.stop();
    });
    let start = Instant::now();
    let exit = machine.run();
    eprintln!("\n{exit:?} after {:?}", start.elapsed());
    let mut counters = handle.counters();
    counters.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (name, count) in counters {
        eprintln!("{count:>12} {name}");
    }
    Ok(())
}
