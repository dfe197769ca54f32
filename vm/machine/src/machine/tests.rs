use super::*;
use hv::CpuIo;
use hv::state::Gpr;
use hv_fake::{FakeHypervisor, Script};
use std::io::Write;

#[derive(Default)]
struct Lines(Mutex<Vec<u8>>);

impl ConsoleBackend for Lines {
    fn output(&self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

/// An ELF that loads one byte at 16 MiB.
fn kernel() -> File {
    let mut bytes = vec![0; 121];
    bytes[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
    bytes[24..32].copy_from_slice(&0x100_0000u64.to_le_bytes());
    bytes[32] = 64;
    bytes[54] = 56;
    bytes[56] = 1;
    bytes[64] = 1;
    for (at, value) in [(72usize, 120u64), (88, 0x100_0000), (96, 1), (104, 1)] {
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    file
}

fn config(vcpus: u32, serial: Arc<Lines>) -> MachineConfig {
    let kernel = kernel();
    let cmdline = "quiet".to_owned();
    MachineConfig { vcpus, memory_mib: 64, kernel, initramfs: None, cmdline, serial, generation_id: [3; 16] }
}

fn machine(vcpus: u32, scripts: Vec<(u32, Script)>) -> (Machine, Arc<Lines>) {
    let serial = Arc::new(Lines::default());
    let engine = FakeHypervisor::new(scripts);
    (MachineBuilder::new(config(vcpus, serial.clone())).build(&engine).unwrap(), serial)
}

fn script(body: impl FnOnce(&dyn CpuIo) + Send + 'static) -> Script {
    Box::new(|io| {
        body(io);
        None
    })
}

#[test]
fn the_guest_powers_itself_off() {
    let off = script(|io| {
        io.pio_write(layout::SERIAL_PORT, b"h");
        io.pio_write(layout::SERIAL_PORT, b"i");
        io.pio_write(layout::SLEEP_CONTROL_PORT, &[0x34]);
    });
    let (machine, serial) = machine(2, vec![(1, off)]);
    assert_eq!(machine.run(), Exit::PowerOff);
    assert_eq!(*serial.0.lock().unwrap(), b"hi");
}

#[test]
fn the_first_reason_to_end_stays() {
    let reset = script(|io| {
        io.pio_write(layout::RESET_PORT, &[1]);
        io.pio_write(layout::SLEEP_CONTROL_PORT, &[0x34]);
    });
    assert_eq!(machine(1, vec![(0, reset)]).0.run(), Exit::Reset);
}

#[test]
fn every_halt_ends_the_machine_as_what_it_is() {
    for (halt, exit) in [
        (Halt::TripleFault, Exit::TripleFault),
        (Halt::PowerOff, Exit::PowerOff),
        (Halt::Reset, Exit::Reset),
        (Halt::Crashed("why".to_owned()), Exit::Crashed("why".to_owned())),
    ] {
        let halts: Script = Box::new(|_| Some(halt));
        assert_eq!(machine(2, vec![(1, halts)]).0.run(), exit);
    }
}

#[test]
fn the_command_line_carries_the_engines_words() {
    let (machine, _) = machine(1, vec![]);
    let mut line = [0; 22];
    machine.ram.memory().read_slice(&mut line, GuestAddress(layout::BOOT_CMDLINE)).unwrap();
    assert_eq!(&line, b"reboot=a quiet fake=1\0");
    let mut id = [0; 16];
    machine.ram.memory().read_slice(&mut id, GuestAddress(layout::VM_GENERATION_ID)).unwrap();
    assert_eq!(id, [3; 16]);
}

#[test]
fn a_paused_machine_gives_and_takes_state_and_goes_on() {
    let (machine, _) = machine(2, vec![]);
    let handle = machine.handle();
    assert!(handle.vcpu_state(0).is_none(), "not paused");
    let thread = std::thread::spawn(|| machine.run());
    for _ in 0..20 {
        assert!(handle.pause());
        let state = handle.vcpu_state(0).unwrap().unwrap();
        let StateElement::Gpr(gpr) = &state[1] else { panic!("the second element is {:?}", state[1].id()) };
        assert_eq!((gpr.rip, gpr.regs[6]), (0x100_0000, layout::BOOT_PARAMS));
        let element = StateElement::Gpr(Gpr { regs: vec![1; 16], rip: 5, rflags: 2 });
        handle.set_vcpu_state(1, vec![element.clone()]).unwrap().unwrap();
        assert_eq!(handle.vcpu_state(1).unwrap().unwrap()[1], element);
        handle.resume();
    }
    handle.stop();
    assert_eq!(thread.join().unwrap(), Exit::Stopped);
    assert!(!handle.pause(), "it has ended");
}

#[test]
fn a_machine_can_start_paused() {
    let off = script(|io| io.pio_write(layout::SLEEP_CONTROL_PORT, &[0x34]));
    let (machine, serial) = machine(1, vec![(0, off)]);
    machine.start_paused();
    let handle = machine.handle();
    let thread = std::thread::spawn(|| machine.run());
    assert!(handle.pause());
    assert!(serial.0.lock().unwrap().is_empty());
    handle.resume();
    assert_eq!(thread.join().unwrap(), Exit::PowerOff);
}

fn read_port(io: &dyn CpuIo, register: u16) -> u8 {
    let mut data = [0];
    io.pio_read(layout::SERIAL_PORT + register, &mut data);
    data[0]
}

fn write_port(io: &dyn CpuIo, register: u16, value: u8) {
    io.pio_write(layout::SERIAL_PORT + register, &[value]);
}

/// A guest that has set the serial port up, with two bytes to be read from it, and the mailbox but for its command.
fn saved() -> DevicesState {
    let (ready, set_up) = std::sync::mpsc::channel();
    let guest = script(move |io| {
        write_port(io, 3, 0x80);
        write_port(io, 0, 0x34);
        write_port(io, 1, 0x12);
        write_port(io, 3, 0x1b);
        write_port(io, 7, 0x5a);
        write_port(io, 4, 0x10); // loopback
        write_port(io, 0, b'a');
        write_port(io, 0, b'b');
        write_port(io, 4, 0x0b);
        io.mmio_write(layout::MAILBOX + 4, &1u32.to_le_bytes());
        io.mmio_write(layout::MAILBOX + 8, &0x9a100u64.to_le_bytes());
        ready.send(()).unwrap();
    });
    let (machine, output) = machine(2, vec![(0, guest)]);
    let handle = machine.handle();
    let thread = std::thread::spawn(|| machine.run());
    set_up.recv().unwrap();
    assert!(handle.pause());
    let state = handle.save_devices().unwrap();
    handle.stop();
    thread.join().unwrap();
    assert!(output.0.lock().unwrap().is_empty());
    state
}

#[test]
fn serial_port_and_mailbox_go_on_in_another_machine() {
    let bytes = prost::Message::encode_to_vec(&saved());
    let state = <DevicesState as prost::Message>::decode(&bytes[..]).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = seen.clone();
    let guest = script(move |io| {
        let mut noted = noted.lock().unwrap();
        noted.extend([7, 3, 4].map(|register| read_port(io, register)));
        noted.extend([5, 0, 5, 0, 5].map(|register| read_port(io, register)));
        write_port(io, 3, 0x80);
        noted.extend([0, 1].map(|register| read_port(io, register)));
        write_port(io, 3, 0x1b);
        write_port(io, 0, b'c');
        io.mmio_write(layout::MAILBOX, &1u16.to_le_bytes());
        io.pio_write(layout::SLEEP_CONTROL_PORT, &[0x34]);
    });
    let engine = FakeHypervisor::new(vec![(0, guest)]);
    let output = Arc::new(Lines::default());
    let machine = MachineBuilder::new(config(2, output.clone())).build(&engine).unwrap();
    machine.start_paused();
    let handle = machine.handle();
    handle.restore_devices(&state).unwrap();
    assert_eq!(handle.save_devices().unwrap(), state);
    assert!(engine.vm().woken().is_empty(), "to restore wakes nobody");
    handle.resume();
    assert_eq!(machine.run(), Exit::PowerOff);
    assert_eq!(*seen.lock().unwrap(), [0x5a, 0x1b, 0x0b, 0x61, b'a', 0x61, b'b', 0x60, 0x34, 0x12]);
    assert_eq!(*output.0.lock().unwrap(), b"c");
    assert_eq!(engine.vm().woken(), [(1, 0x9a100)]);
}

#[test]
fn device_states_that_do_not_fit_are_refused() {
    let state = saved();
    let refused = |change: &dyn Fn(&mut DevicesState)| {
        let mut state = state.clone();
        change(&mut state);
        machine(2, vec![]).0.handle().restore_devices(&state).is_err()
    };
    assert!(!refused(&|_| {}));
    assert!(refused(&|state| state.version += 1));
    assert!(refused(&|state| state.serial = None));
    assert!(refused(&|state| state.serial.as_mut().unwrap().scratch = 256));
    assert!(refused(&|state| state.serial.as_mut().unwrap().divisor = 1 << 16));
    assert!(refused(&|state| state.serial.as_mut().unwrap().received = vec![0; 65]));
    assert!(refused(&|state| state.mailbox = None));
    assert!(refused(&|state| state.mailbox.as_mut().unwrap().bytes.push(0)));
    assert!(refused(&|state| state.slots.push(Default::default())));
    let mut engine = FakeHypervisor::new([]);
    engine.ap_startup = ApStartup::Architectural;
    let machine = MachineBuilder::new(config(2, Arc::default())).build(&engine).unwrap();
    assert!(machine.handle().restore_devices(&state).is_err(), "there is no mailbox");
}

#[test]
fn a_panic_on_a_vcpu_thread_ends_the_machine() {
    let (machine, _) = machine(2, vec![(1, script(|_| panic!("on purpose")))]);
    assert_eq!(machine.run(), Exit::Crashed("vCPU 1 ended".to_owned()));
}

#[test]
fn impossible_shapes_are_refused() {
    let refused = |change: &dyn Fn(&mut MachineConfig)| {
        let mut config = config(1, Arc::default());
        change(&mut config);
        MachineBuilder::new(config).build(&FakeHypervisor::new([])).is_err()
    };
    assert!(!refused(&|_| {}));
    assert!(refused(&|config| config.vcpus = 0));
    assert!(refused(&|config| config.vcpus = 9));
    assert!(refused(&|config| config.memory_mib = 63));
    assert!(refused(&|config| config.memory_mib = u64::MAX));
}

#[test]
fn pmem_files_are_placed_one_behind_the_other() {
    let file = |len: u64| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    };
    let mut builder = MachineBuilder::new(config(1, Arc::default()));
    let first = builder.pmem(file(4 * layout::MIB)).unwrap();
    let second = builder.pmem(file(2 * layout::MIB)).unwrap();
    assert_eq!(first, PmemRange { gpa: layout::PMEM, len: 4 * layout::MIB });
    assert_eq!(second.gpa, first.gpa + first.len);
    assert!(builder.pmem(file(0)).is_err() && builder.pmem(file(4096)).is_err());
    let machine = builder.build(&FakeHypervisor::new([])).unwrap();
    assert_eq!(machine.ram.kind_at(second.gpa), Some(guest_memory::RangeKind::ReadOnly));
}

#[test]
fn every_port_and_odd_addresses_answer() {
    let sweep = script(|io| {
        for port in 0..=u16::MAX {
            for len in [1, 2, 4] {
                let mut data = [0; 4];
                io.pio_read(port, &mut data[..len]);
            }
        }
        for gpa in [layout::MAILBOX, layout::ECAM, layout::PCI_WINDOW_32, layout::IO_APIC, u64::MAX - 3] {
            for (offset, len) in (0..4).flat_map(|offset| (1..9).map(move |len| (offset, len))) {
                let mut data = [0; 8];
                io.mmio_write(gpa.saturating_add(offset), &data[..len]);
                io.mmio_read(gpa.saturating_add(offset), &mut data[..len]);
            }
        }
        io.pio_write(layout::SLEEP_CONTROL_PORT, &[0x34]);
    });
    assert_eq!(machine(1, vec![(0, sweep)]).0.run(), Exit::PowerOff);
}
