//! Boots a kernel on the software CPU by hand: `boot --kernel vmlinux.elf --initrd x [--jit]`, serial console only.
//! A tool for bringing the engine up, not the product.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use backends::ConsoleBackend;
use clap::Parser;
use hv_soft::{ExecutorKind, SoftEngine};
use machine::{MachineBuilder, MachineConfig};
use soft_jit::Tuning;

#[derive(Parser)]
struct Arguments {
    /// The translator; otherwise the interpreter.
    #[arg(long)]
    jit: bool,
    /// Tuning words for the translator.
    #[arg(long, default_value = "")]
    tuning: String,
    #[arg(long)]
    kernel: PathBuf,
    #[arg(long)]
    initrd: Option<PathBuf>,
    #[arg(long, default_value = "console=ttyS0 earlyprintk=ttyS0 panic=-1")]
    cmdline: String,
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    #[arg(long, default_value_t = 512)]
    memory: u64,
    /// When stopped by --seconds, says where each vCPU was.
    #[arg(long)]
    registers: bool,
    /// Stops after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
}

/// Writes to standard output.
struct Stdout;

impl ConsoleBackend for Stdout {
    fn output(&self, bytes: &[u8]) {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    }
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let open = |path: &PathBuf| File::open(path).with_context(|| format!("Cannot open {}", path.display()));
    let config = MachineConfig {
        vcpus: arguments.vcpus,
        memory_mib: arguments.memory,
        kernel: open(&arguments.kernel)?,
        initramfs: arguments.initrd.as_ref().map(open).transpose()?,
        cmdline: arguments.cmdline.clone(),
        serial: Arc::new(Stdout),
        generation_id: [1; 16],
    };
    let executor = if arguments.jit {
        let tuning = Tuning::parse(&arguments.tuning);
        ExecutorKind::Translator(tuning.map_err(|word| anyhow::anyhow!("Unknown tuning word {word}"))?)
    } else {
        ExecutorKind::Interpreter
    };
    let builder = MachineBuilder::new(config);
    let started = std::time::Instant::now();
    let machine = builder.build(&SoftEngine::with_executor(executor))?;
    let handle = machine.handle();
    if let Some(seconds) = arguments.seconds {
        let handle = handle.clone();
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_secs(seconds));
            if arguments.registers {
                handle.pause();
                for vcpu in 0..arguments.vcpus {
                    eprintln!("vCPU {vcpu}: {:#x?}", handle.vcpu_state(vcpu));
                }
            }
            handle.stop();
        });
    }
    let exit = machine.run();
    eprintln!("{exit:?} after {:?}", started.elapsed());
    for (name, count) in handle.counters() {
        eprintln!("{name}: {count}");
    }
    Ok(())
}
