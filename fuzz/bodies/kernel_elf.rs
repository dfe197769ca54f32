//! Any bytes as the kernel and the initramfs of a machine: it is built or refused, and never more memory is taken than the
//! machine has.

use std::io::Write as _;
use std::sync::Arc;

use backends::ConsoleBackend;
use hv_fake::FakeHypervisor;
use machine::{MachineBuilder, MachineConfig};

struct Nobody;

impl ConsoleBackend for Nobody {
    fn output(&self, _: &[u8]) {}
}

fn file(bytes: &[u8]) -> std::fs::File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("a file");
    std::io::Seek::rewind(&mut file).expect("a file");
    file
}

/// The kernel; its first 16 bytes are the initramfs and the command line, too.
pub(crate) fn run(data: &[u8]) {
    let short = &data[..data.len().min(16)];
    let config = MachineConfig {
        vcpus: 1,
        memory_mib: 16,
        kernel: file(data),
        initramfs: data.first().is_some_and(|byte| byte & 1 == 0).then(|| file(short)),
        cmdline: String::from_utf8_lossy(short).into_owned(),
        serial: Arc::new(Nobody),
        generation_id: [1; 16],
    };
    // The machine is not run: a fake processor would only wait.
    let _ = MachineBuilder::new(config).build(&FakeHypervisor::new([]));
}
