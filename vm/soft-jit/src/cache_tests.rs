//! Which translation serves which addresses, what its bytes depend on, and what is left of links when units are reused.

use soft_cpu::Exit;
use soft_cpu::cpu::reg;

use crate::Tuning;
use crate::bare_guest::{Guest, Shared};
use crate::guest_tests::{LARGE, tables};
use crate::native_tests::{self, Random};

/// Physical memory that every large page of [`tables`] leads to.
const ALIASED: u64 = 0x20_0000;
/// Pages of HLT to fill the cache with.
const FILL: u64 = 0x40_0000;

fn blocks(guest: &Guest) -> u64 {
    guest.vm.jit.lock().stats.blocks
}

#[test]
fn one_user_translation_serves_every_address_of_its_page() {
    // lea rbx, [rip + 9]; inc eax; jmp +0; test eax, eax; jns -10 (to inc); hlt, which is #GP at CPL 3
    let code = [0x48, 0x8d, 0x1d, 9, 0, 0, 0, 0xff, 0xc0, 0xeb, 0x00, 0x85, 0xc0, 0x79, 0xf8, 0xf4];
    for (user, shared) in [(true, true), (false, false)] {
        let mut guest = Guest::new(Tuning::default());
        tables(&mut guest, 7);
        guest.cpu.cpl = if user { 3 } else { 0 };
        guest.write(ALIASED, &code);
        let mut made = Vec::new();
        for alias in 0..3 {
            let rip = LARGE + alias * 0x20_0000;
            guest.cpu.gpr[reg::RAX] = 0x7fff_fff0;
            let entries = guest.counter("entries into translated code");
            let exit = guest.run(rip);
            assert_eq!(exit, if user { Exit::Shutdown } else { Exit::Halt });
            assert_eq!((guest.cpu.gpr[reg::RAX], guest.cpu.gpr[reg::RBX]), (0x8000_0000, rip + 16));
            assert_eq!(guest.cpu.rip, rip + if user { 15 } else { 16 });
            assert!(guest.counter("entries into translated code") > entries);
            made.push(blocks(&guest));
        }
        assert!(made[0] > 0);
        // CPL 0 code has its linear address in it.
        let expected = if shared { [made[0]; 3] } else { [1, 2, 3].map(|times| times * made[0]) };
        assert_eq!(made, expected, "user {user}");
    }
}

/// Runs the same code in a VM of its own; gives all bytes of its code cache.
fn translations(tuning: Tuning, user: bool) -> (Vec<u8>, Guest) {
    let mut random = Random(0x5eed);
    let tuning = Tuning { cache_bytes: 0, ..tuning };
    let mut guest = Shared::new(native_tests::BASE, native_tests::SIZE, 1, tuning).vcpu(0);
    guest.cpu.cpl = if user { 3 } else { 0 };
    guest.write(native_tests::END, &[0xf4]);
    for _ in 0..300 {
        let code = native_tests::program(&mut random, 12);
        guest.write(native_tests::CODE, &code);
        let state = native_tests::initial(&mut random);
        guest.cpu.gpr = state.gpr;
        guest.cpu.rflags = state.flags;
        // However it ends: by HLT, or by an exception.
        let _ = guest.run(native_tests::CODE);
    }
    // Control flow, string and system instructions: call +0; pop rax; rep movsb; rdtsc; rdfsbase rax; pushfq; popfq; cli; sti;
    // swapgs; test eax, eax; je +0; jmp +0; mov rbx, [rsp]; jmp rbx
    let code = b"\xe8\0\0\0\0\x58\xf3\xa4\x0f\x31\xf3\x48\x0f\xae\xc0\x9c\x9d\xfa\xfb\x0f\x01\xf8\x85\xc0\x74\0\xeb\0\x48\x8b\x1c\x24\xff\xe3";
    for offset in 0..16 {
        let at = native_tests::CODE + 0x1000 * (offset + 1) - 8 * offset;
        guest.write(at, code);
        guest.cpu.gpr = [native_tests::DATA; 16];
        guest.cpu.gpr[reg::RCX] = 3;
        guest.cpu.rflags = 2;
        let _ = guest.run(at);
    }
    let bytes = guest.vm.jit.lock().cache.bytes();
    assert!(blocks(&guest) > 300);
    (bytes, guest)
}

/// Where code, memory, the vCPU and the translator lie on the host.
fn places(guest: &Guest) -> [u64; 4] {
    let code = guest.vm.jit.lock().cache.address(0);
    let memory = guest.vm.map.lookup(native_tests::BASE).unwrap().host as u64;
    [code, memory, &raw const *guest.cpu as u64, &raw const *guest.vm.jit as u64]
}

#[test]
fn the_bytes_of_a_translation_know_no_host_address() {
    for tuning in [Tuning::default(), Tuning::plain()] {
        for user in [false, true] {
            // Both VMs are there at once, so nothing of one lies where the other has it.
            let (first, guest) = translations(tuning, user);
            let (second, other) = translations(tuning, user);
            assert!(places(&guest).iter().zip(places(&other)).all(|(one, other)| *one != other));
            let differs = first.iter().zip(&second).position(|(a, b)| a != b);
            assert_eq!((differs, first.len()), (None, second.len()), "user {user}, {tuning:?}");
        }
    }
}

/// Puts blocks of one HLT each into the cache until its current unit is `unit` and holds `held` blocks or more.
fn fill(guest: &mut Guest, next: &mut u64, unit: usize, held: usize) {
    loop {
        let held_by_now = {
            let shared = guest.vm.jit.lock();
            (shared.cache.current_unit().0 == unit).then(|| shared.blocks_of(unit))
        };
        if held_by_now.is_some_and(|now| now >= held) {
            return;
        }
        assert_eq!(guest.run(*next), Exit::Halt);
        *next += 1;
        assert_eq!(guest.cpu.rip, *next);
    }
}

const SOURCE: u64 = 0x9000;
const TARGET: u64 = 0x9800;

/// A guest with a jump from [`SOURCE`] to [`TARGET`], and nothing else in that page.
fn jumper() -> (Guest, u64) {
    let guest = Guest::new(Tuning { cache_bytes: 0, ..Tuning::default() });
    guest.write(FILL, &vec![0xf4; 0x20_0000]);
    guest.write(SOURCE, &[0xff, 0xc0, 0xe9, 0xf9, 0x07, 0, 0]); // inc eax; jmp TARGET
    guest.write(TARGET, &[0xff, 0xc3, 0xf4]); // inc ebx; hlt
    (guest, FILL)
}

fn counts(guest: &Guest) -> [u64; 2] {
    [guest.cpu.gpr[reg::RAX], guest.cpu.gpr[reg::RBX]]
}

#[test]
fn a_jump_forgets_a_target_whose_unit_is_reused() {
    let (mut guest, mut next) = jumper();
    assert_eq!(guest.run(TARGET), Exit::Halt);
    fill(&mut guest, &mut next, 1, 1);
    assert_eq!(guest.run(SOURCE), Exit::Halt);
    assert_eq!((guest.vm.jit.lock().stats.links, counts(&guest)), (1, [1, 2]));
    // Other code lies where the target was.
    fill(&mut guest, &mut next, 0, 10);
    assert_eq!(guest.vm.jit.lock().stats.evicted_units, 1);
    assert_eq!(guest.run(SOURCE), Exit::Halt);
    assert_eq!((guest.cpu.rip, counts(&guest)), (TARGET + 3, [2, 3]));
}

#[test]
fn a_target_forgets_a_jump_whose_unit_is_reused() {
    let (mut guest, mut next) = jumper();
    let most = guest.vm.jit.lock().cache.current_unit().1;
    fill(&mut guest, &mut next, 0, most - 1);
    assert_eq!(guest.run(SOURCE), Exit::Halt);
    assert_eq!((guest.vm.jit.lock().stats.links, counts(&guest)), (1, [1, 1]));
    assert_eq!(guest.vm.jit.lock().cache.current_unit().0, 1, "the target is in another unit");
    // Other code lies where the jump was, and the target is still there.
    fill(&mut guest, &mut next, 0, most);
    let (bytes, killed) = {
        let shared = guest.vm.jit.lock();
        (shared.cache.bytes(), shared.stats.killed)
    };
    guest.write(TARGET, &[0xff, 0xc3, 0xf4]);
    assert_eq!(guest.vm.jit.lock().stats.killed, killed + 1, "the target's translation");
    assert!(guest.vm.jit.lock().cache.bytes() == bytes, "nothing was patched in other blocks");
    assert_eq!(guest.run(SOURCE), Exit::Halt);
    assert_eq!((guest.cpu.rip, counts(&guest)), (TARGET + 3, [2, 2]));
}
