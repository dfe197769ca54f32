//! Small guests that do what a hostile program or kernel may do.

use iced_x86::CpuidFeature;
use soft_cpu::Exit;
use soft_cpu::cpu::{cr, reg};

use crate::Tuning;
use crate::bare_guest::Guest;

const CODE: u64 = 0x8000;

/// Stores to pages with code that were reported.
fn stores(guest: &Guest) -> u64 {
    guest.vm.jit.lock().stats.stores
}

#[test]
fn what_the_host_lacks_is_not_translated() {
    // adcx rax, rbx (66 48 0f 38 f6 c3); hlt
    let code = [0x66, 0x48, 0x0f, 0x38, 0xf6, 0xc3, 0xf4];
    let mut steps = Vec::new();
    for host_has in [(|_| true) as fn(CpuidFeature) -> bool, |feature| feature != CpuidFeature::ADX] {
        let mut guest = Guest::new(Tuning::default());
        guest.vm.jit.lock().translator.host_has = host_has;
        guest.write(CODE, &code);
        guest.cpu.gpr[reg::RAX] = 5;
        guest.cpu.gpr[reg::RBX] = 6;
        assert!(matches!(guest.run(CODE), Exit::Halt));
        assert_eq!(guest.cpu.gpr[reg::RAX], 11);
        steps.push(guest.counter("interpreted instructions"));
    }
    // HLT, and ADCX where the host has none.
    assert_eq!(steps, [1, 2]);
}

#[test]
fn a_saved_image_holds_every_component_and_nothing_of_the_host() {
    let mut guest = Guest::new(Tuning::default());
    guest.cpu.cr4 |= cr::CR4_OSFXSR;
    // xorps xmm0, xmm0; hlt: x87 and AVX are in their initial states, which processors note differently.
    guest.write(CODE, &[0x0f, 0x57, 0xc0, 0xf4]);
    assert!(matches!(guest.run(CODE), Exit::Halt));
    assert_eq!(guest.counter("interpreted instructions"), 1);
    assert_eq!(guest.cpu.xsave.0[512], 7);
    // fld dword ptr [0x9000]; fsqrt; hlt: the processor notes where they are and what they read, and on AMD only with an
    // exception pending, which a root of a negative number is once it is unmasked.
    guest.cpu.xsave.0[0] &= !1;
    guest.write(0x9000, &(-1.0f32).to_le_bytes());
    guest.write(CODE, &[0xd9, 0x04, 0x25, 0x00, 0x90, 0x00, 0x00, 0xd9, 0xfa, 0xf4]);
    assert!(matches!(guest.run(CODE), Exit::Halt));
    assert_eq!(guest.counter("interpreted instructions"), 2);
    assert_eq!(guest.cpu.xsave.0[2] & 0x81, 0x81, "an invalid operation is pending");
    assert_eq!(guest.cpu.xsave.0[8..24], [0; 16]);
    assert_eq!(guest.cpu.xsave.0[28..32], [0xff, 0xff, 0, 0]);
}

#[test]
fn an_undefined_opcode_in_the_cache_goes_to_the_interpreter() {
    let mut guest = Guest::new(Tuning::default());
    // inc eax; hlt
    guest.write(CODE, &[0xff, 0xc0, 0xf4]);
    assert!(matches!(guest.run(CODE), Exit::Halt));
    {
        let mut shared = guest.vm.jit.lock();
        let mut blocks = (0..4).filter_map(|id| shared.block(id));
        let at = blocks.find(|block| block.key.gpa == CODE).unwrap().at;
        drop(blocks);
        shared.cache.write(at, &[0x0f, 0x0b]);
    }
    assert!(matches!(guest.run(CODE), Exit::Halt));
    assert_eq!(guest.cpu.gpr[reg::RAX], 2);
}

/// Page tables that map the first 2 MiB of linear addresses as 4 KiB pages and the GiB at 1 GiB as large pages, identically
/// except that every large page leads to the 2 MiB at 2 MiB.
pub(crate) fn tables(guest: &mut Guest, rights: u64) {
    let put = |at: u64, value: u64| guest.write(at, &value.to_le_bytes());
    put(TABLES, (TABLES + 0x1000) | 7);
    put(TABLES + 0x1000, (TABLES + 0x2000) | 7);
    put(TABLES + 0x1008, (TABLES + 0x3000) | 7);
    put(TABLES + 0x2000, PT | 7);
    for index in 0..512 {
        put(PT + 8 * index, index << 12 | rights);
        put(TABLES + 0x3000 + 8 * index, 0x20_0080 | rights);
    }
    guest.cpu.cr0 = cr::CR0_PE | cr::CR0_WP | cr::CR0_PG;
    guest.cpu.cr4 |= cr::CR4_PAE | cr::CR4_PGE;
    guest.cpu.cr3 = TABLES;
}

const TABLES: u64 = 0x1_0000;
const PT: u64 = TABLES + 0x4000;
pub(crate) const LARGE: u64 = 0x4000_0000;

#[test]
fn code_in_a_page_table_is_run() {
    let mut guest = Guest::new(Tuning::default());
    tables(&mut guest, 3);
    // In the entry of a page that nobody uses: HLT.
    guest.write(PT + 0xf00, &[0xf4]);
    assert!(matches!(guest.run(PT + 0xf00), Exit::Halt));
    // The walk for this page's code marks its entry, which lies in a page with code, while the lock is held.
    guest.write(CODE, &[0xf4]);
    let before = stores(&guest);
    assert!(matches!(guest.run(CODE), Exit::Halt));
    assert_eq!(stores(&guest), before + 1);
    // And so does the walk for data: mov rax, [0x9000]; hlt
    guest.write(CODE, &[0x48, 0x8b, 0x04, 0x25, 0, 0x90, 0, 0, 0xf4]);
    let before = stores(&guest);
    let mut exit = guest.run(CODE);
    while matches!(exit, Exit::Kicked) {
        exit = guest.go_on();
    }
    assert!(matches!(exit, Exit::Halt));
    assert_eq!(stores(&guest), before + 1);
}

#[test]
fn invlpg_of_a_large_page_drops_its_code() {
    let mut guest = Guest::new(Tuning::default());
    tables(&mut guest, 3);
    guest.write(0x20_0000, &[0xf4]); // hlt
    guest.write(0x40_0000, &[0xff, 0xc0, 0xf4]); // inc eax; hlt
    assert!(matches!(guest.run(LARGE), Exit::Halt));
    guest.write(TABLES + 0x3000, &(0x40_0083u64).to_le_bytes());
    // invlpg [rbx]; hlt - at an address in the page that was not used
    guest.write(CODE, &[0x0f, 0x01, 0x3b, 0xf4]);
    guest.cpu.gpr[reg::RBX] = LARGE + 0x12_3456;
    assert!(matches!(guest.run(CODE), Exit::Halt));
    assert!(matches!(guest.run(LARGE), Exit::Halt));
    assert_eq!(guest.cpu.gpr[reg::RAX], 1);
}

#[test]
fn code_that_is_not_global_goes_with_cr3() {
    let mut guest = Guest::new(Tuning::default());
    tables(&mut guest, 0x103);
    let page = 0x9000u64;
    let entry = PT + 8 * (page >> 12);
    guest.write(entry, &(page | 3).to_le_bytes());
    guest.write(page, &[0xf4]);
    guest.write(0xa000, &[0xff, 0xc0, 0xf4]);
    assert!(matches!(guest.run(page), Exit::Halt));
    guest.write(entry, &(0xa003u64).to_le_bytes());
    // mov rbx, cr3; mov cr3, rbx; hlt
    guest.write(CODE, &[0x0f, 0x20, 0xdb, 0x0f, 0x22, 0xdb, 0xf4]);
    assert!(matches!(guest.run(CODE), Exit::Halt));
    assert!(matches!(guest.run(page), Exit::Halt));
    assert_eq!(guest.cpu.gpr[reg::RAX], 1);
}

#[test]
fn a_jump_is_not_linked_to_another_frame() {
    let mut guest = Guest::new(Tuning::default());
    tables(&mut guest, 3);
    let page = 0x9000u64;
    // mov [rbx], rcx; jmp +0; hlt: the store gives this page another frame, where INC stands behind the jump. Without a
    // flush the jump may lead to either, but the frame's own code must not change.
    guest.write(page, &[0x48, 0x89, 0x0b, 0xeb, 0x00, 0xf4]);
    guest.write(0xa000, &[0x48, 0x89, 0x0b, 0xeb, 0x00, 0xff, 0xc0, 0xf4]);
    guest.cpu.gpr[reg::RBX] = PT + 8 * (page >> 12);
    guest.cpu.gpr[reg::RCX] = 0xa003;
    assert!(matches!(guest.run(page), Exit::Halt));
    guest.cpu.gpr[reg::RAX] = 0;
    // The first frame by another address: it holds no INC.
    guest.write(PT + 8 * (page >> 12), &(page | 3).to_le_bytes());
    // mov rdx, cr3; mov cr3, rdx; hlt
    guest.write(CODE, &[0x0f, 0x20, 0xda, 0x0f, 0x22, 0xda, 0xf4]);
    assert!(matches!(guest.run(CODE), Exit::Halt));
    guest.cpu.gpr[reg::RCX] = page | 3;
    assert!(matches!(guest.run(page), Exit::Halt));
    assert_eq!(guest.cpu.gpr[reg::RAX], 0);
}

#[test]
fn blocks_of_a_unit_are_limited() {
    let mut guest = Guest::new(Tuning { cache_bytes: 0, ..Tuning::default() });
    guest.write(0x20_0000, &vec![0xf4; 0x8000]);
    let most = guest.vm.jit.lock().cache.current_unit().1;
    for at in 0..=most as u64 {
        assert!(matches!(guest.run(0x20_0000 + at), Exit::Halt));
    }
    assert_eq!(guest.vm.jit.lock().cache.current_unit().0, 1, "{most} blocks fill a unit");
}

#[test]
fn a_target_two_gib_behind_the_page() {
    let mut guest = Guest::new(Tuning::default());
    guest.cpu.cpl = 3;
    // lea rax, [rip + 0x7fffffff]; hlt (which is #GP)
    guest.write(CODE + 0x100, &[0x48, 0x8d, 0x05, 0xff, 0xff, 0xff, 0x7f, 0xf4]);
    assert!(matches!(guest.run(CODE + 0x100), Exit::Shutdown));
    assert_eq!(guest.cpu.gpr[reg::RAX], CODE + 0x107 + 0x7fff_ffff);
    assert!(guest.counter("entries into translated code") > 0);
}

/// Runs at CPL 3 (and 0) until the exception without an IDT; gives RIP and RSP of the instruction that raised it.
fn raised(tuning: Tuning, user: bool, code: &[u8]) -> (u64, u64) {
    let mut guest = Guest::new(tuning);
    guest.cpu.cpl = if user { 3 } else { 0 };
    guest.write(CODE, code);
    guest.write(0x9000, &(1u64 << 47).to_le_bytes());
    guest.cpu.gpr[reg::RBX] = 1 << 47;
    guest.cpu.gpr[reg::RSP] = 0x9000;
    assert!(matches!(guest.run(CODE), Exit::Shutdown));
    assert!(guest.counter("entries into translated code") > 0);
    (guest.cpu.rip - CODE, guest.cpu.gpr[reg::RSP])
}

#[test]
fn a_jump_to_no_address_faults_where_it_is() {
    let lockstep = Tuning { lockstep: true, ..Tuning::default() };
    let uncached = Tuning { jump_cache: false, ..Tuning::default() };
    for tuning in [Tuning::default(), Tuning::plain(), uncached, lockstep] {
        for user in [false, true] {
            for (code, at) in [
                (&[0x90, 0xff, 0xe3][..], 1),                     // nop; jmp rbx
                (&[0x90, 0xff, 0x24, 0x24], 1),                   // nop; jmp [rsp]
                (&[0x90, 0xff, 0xd3], 1),                         // nop; call rbx
                (&[0x90, 0xff, 0x14, 0x24], 1),                   // nop; call [rsp]
                (&[0x90, 0xc3], 1),                               // nop; ret
                (&[0x31, 0xc0, 0xc2, 0x10, 0x00], 2),             // xor eax, eax; ret 16
                (&[0x48, 0x85, 0xe4, 0x75, 0x01, 0xf4, 0xc3], 6), // test rsp, rsp; jne +1; hlt; ret
            ] {
                assert_eq!(raised(tuning, user, code), (at, 0x9000), "{code:02x?} {tuning:?} user {user}");
            }
        }
    }
}

#[test]
fn a_direct_jump_past_the_last_address_faults_where_it_is() {
    // At the end of the lower half: nop; jmp +0x7fff0000. And a conditional one.
    for (code, at) in [
        (&[0x90, 0xe9, 0, 0, 0xff, 0x7f][..], 1),
        (&[0x48, 0x85, 0xe4, 0x0f, 0x85, 0, 0, 0xff, 0x7f], 3), // test rsp, rsp; jne
    ] {
        let mut guest = Guest::new(Tuning::default());
        tables(&mut guest, 7);
        // The last 512 GiB of the half are mapped as the first.
        guest.write(TABLES + 8 * 255, &(TABLES + 0x1000 | 7).to_le_bytes());
        guest.write(TABLES + 0x1000 + 8 * 511, &(TABLES + 0x2000 | 7).to_le_bytes());
        guest.write(TABLES + 0x2000 + 8 * 511, &(PT | 7).to_le_bytes());
        guest.cpu.cpl = 3;
        guest.cpu.gpr[reg::RSP] = 0x9000;
        guest.write(CODE, code);
        let rip = (1 << 47) - 0x20_0000 + CODE;
        assert!(matches!(guest.run(rip), Exit::Shutdown));
        assert_eq!(guest.cpu.rip, rip + at);
        assert!(guest.counter("entries into translated code") > 0);
    }
}

#[test]
fn a_bit_string_with_32_bit_addresses_wraps() {
    // bts [ebx], ecx; hlt - the bit is 4 GiB behind the address, less 0x8000.
    let code = [0x67, 0x0f, 0xab, 0x0b, 0xf4];
    let mut guest = Guest::new(Tuning::default());
    guest.write(CODE, &code);
    guest.cpu.gpr[reg::RBX] = 0x9000;
    guest.cpu.gpr[reg::RCX] = 0xfffc_0000; // -0x40000 bits, -0x8000 bytes
    assert!(matches!(guest.run(CODE), Exit::Halt));
    assert_eq!(guest.vm.read::<4>(0x1000), [1, 0, 0, 0]);
    // From 0x1000 down by 0x8000 bytes: no RAM there, and no host address either.
    guest.cpu.gpr[reg::RBX] = 0x1000;
    assert!(matches!(guest.run(CODE), Exit::Halt));
}

#[test]
fn flushing_a_cache_line_faults_as_a_read_does() {
    for code in [
        &[0x0f, 0xae, 0x3b, 0xf4][..],   // clflush [rbx]; hlt
        &[0x66, 0x0f, 0xae, 0x3b, 0xf4], // clflushopt [rbx]
        &[0x66, 0x0f, 0xae, 0x33, 0xf4], // clwb [rbx]
    ] {
        for lockstep in [false, true] {
            let mut guest = Guest::new(Tuning { lockstep, ..Tuning::default() });
            tables(&mut guest, 3);
            guest.write(CODE, code);
            guest.cpu.gpr[reg::RBX] = 0x9000;
            assert!(matches!(guest.run(CODE), Exit::Halt));
            guest.write(PT + 8 * 10, &0u64.to_le_bytes());
            guest.cpu.gpr[reg::RBX] = 0xa000;
            assert!(matches!(guest.run(CODE), Exit::Shutdown));
            assert_eq!((guest.cpu.rip, guest.cpu.cr2), (CODE, 0xa000), "{code:02x?}");
        }
    }
}
