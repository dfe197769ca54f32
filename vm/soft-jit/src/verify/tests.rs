//! What is refused, what is accepted; and of the sequences that blocks consist of, that none of their parts can be left out.

use super::*;
use crate::emit::{ABOVE, Asm, Mem, NOT_EQUAL, R10, R11, RCX, RDI, RSI};
use crate::layout::{
    FLAGS, HOST_MXCSR, HOST_STACK, INDEX_MASK, JUMP_HOST, PAGE_MASK, PC_BASE, REFILL, RFLAGS, RUST_RSP,
    SPILL_RCX, TAG_READ, TAG_WRITE, TEMP, THIS, TLB_DELTA, TLB_HOST, gpr, head,
};

const USER: Mode = Mode { space: Space::User, no_vector: false };

/// The code with a jump to a thunk behind it, to which its own jumps may lead, too.
fn check(code: &[u8]) -> Result<(), String> {
    let mut asm = Asm::default();
    asm.bytes(code);
    finish(asm, &[])
}

/// The same for code with jumps out of it.
fn finish(mut asm: Asm, misses: &[u32]) -> Result<(), String> {
    for miss in misses {
        asm.link_here(*miss);
    }
    let end = asm.jmp();
    let emitted = Emitted { code: asm.buf, thunk_calls: vec![(end, Thunk::JumpMiss)], ..Emitted::default() };
    verify(&emitted, USER)
}

/// Emits a part of a sequence, and notes its jumps out of it.
type Part<'p> = &'p dyn Fn(&mut Asm, &mut Vec<u32>);

/// Lets each part of a sequence be missing once, but for the last, which uses what the others made.
fn each_part_is_needed(what: &str, parts: &[Part<'_>]) {
    let with = |left_out: Option<usize>| {
        let (mut asm, mut misses) = (Asm::default(), Vec::new());
        for (index, part) in parts.iter().enumerate() {
            if Some(index) != left_out {
                part(&mut asm, &mut misses);
            }
        }
        finish(asm, &misses)
    };
    assert_eq!(with(None), Ok(()), "{what}");
    for index in 0..parts.len() - 1 {
        assert!(with(Some(index)).is_err(), "{what} without part {index}");
    }
}

#[test]
fn code_that_could_leave_the_sandbox_is_refused() {
    for code in [
        &[0x0f, 0x05][..],                              // syscall
        &[0xcd, 0x80],                                  // int 80h
        &[0x48, 0x8b, 0x03],                            // mov rax, [rbx]
        &[0x49, 0x8b, 0x02],                            // mov rax, [r10], unchecked
        &[0x49, 0x8b, 0x42, 0x08],                      // mov rax, [r10 + 8]
        &[0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0],    // mov rax, fs:[0]
        &[0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0x40], // mov rax, gs:[0x40000000]
        &[0x65, 0x48, 0x8b, 0x00],                      // mov rax, gs:[rax]
        &[0x48, 0x89, 0xc4],                            // mov rsp, rax
        &[0xff, 0xe0],                                  // jmp rax
        &[0xc3],                                        // ret
        &[0xe8, 0, 0, 0, 0],                            // call to no thunk
        &[0xeb, 0x01, 0xb8, 0x0f, 0x05, 0, 0],          // jmp into an immediate
        &[0xeb, 0xff],                                  // jmp into itself
        &[0xeb, 0x7f],                                  // jmp out of the block
        &[0xf3, 0xa4],                                  // rep movsb
        &[0xd7],                                        // xlatb
        &[0xf3, 0x48, 0x0f, 0xae, 0xd8],                // wrgsbase rax
        &[0x0f, 0x01, 0xef],                            // wrpkru
        &[0x9d],                                        // popfq of what was not pushed
        &[0x9c],                                        // pushfq, left there
        &[0x50, 0x9d],                                  // push rax; popfq
    ] {
        assert!(check(code).is_err(), "{code:02x?}");
    }
    let runs_off = Emitted { code: vec![0x90], ..Emitted::default() };
    assert!(verify(&runs_off, USER).is_err());
}

#[test]
fn state_that_is_not_the_guests_is_neither_written_nor_read() {
    const RAX: u8 = 0;
    let context = head(std::mem::offset_of!(crate::layout::Head, context));
    let tlb = Space::User.tlb();
    for slot in [REFILL, HOST_STACK, RUST_RSP, THIS, HOST_MXCSR, context, tlb + TLB_HOST, tlb + TAG_WRITE] {
        let mut asm = Asm::default();
        asm.store(Mem::Gs(slot), RAX);
        assert!(check(&asm.buf).is_err(), "a write to gs:[{slot:#x}]");
        let mut asm = Asm::default();
        asm.load(RAX, Mem::Gs(slot));
        assert!(check(&asm.buf).is_err(), "a read of gs:[{slot:#x}]");
        let mut push_pop = vec![0x65, 0xff, 0x34, 0x25]; // push gs:[slot]; popfq
        push_pop.extend_from_slice(&slot.to_le_bytes());
        push_pop.push(0x9d);
        assert!(check(&push_pop).is_err(), "gs:[{slot:#x}] to the flags");
    }
    // Only read, in whatever way they are written; and one byte beside a register's slot.
    for slot in [INDEX_MASK, PAGE_MASK, gpr(9) + 1] {
        let mut asm = Asm::default();
        asm.store(Mem::Gs(slot), RAX);
        assert!(check(&asm.buf).is_err(), "a write to gs:[{slot:#x}]");
    }
    for slot in [gpr(9), gpr(11), PC_BASE, SPILL_RCX, TEMP] {
        let mut asm = Asm::default();
        asm.store(Mem::Gs(slot), RAX);
        asm.load(RAX, Mem::Gs(slot));
        assert_eq!(check(&asm.buf), Ok(()), "gs:[{slot:#x}]");
    }
    for (digit, value, good) in
        [(1, 0x200, true), (4, !0x200, true), (1, 0x100, false), (4, -1, false), (6, 0x200, false)]
    {
        let mut asm = Asm::default();
        asm.op_mem(false, &[0x81], digit, Mem::Gs(RFLAGS));
        asm.bytes(&i32::to_le_bytes(value));
        assert_eq!(check(&asm.buf).is_ok(), good, "/{digit} {value:#x}");
    }
}

#[test]
fn flags_may_be_kept_on_the_private_stack() {
    for code in [&[0x9c, 0x9d][..], &[0x9c, 0x41, 0x5b, 0x9c, 0x9d]] {
        assert_eq!(check(code), Ok(()), "{code:02x?}");
    }
    // pushfq; pop gs:[slot]; push gs:[slot]; popfq
    let through = |slot: i32| {
        let mut asm = Asm::default();
        asm.bytes(&[0x9c]);
        asm.op_mem(false, &[0x8f], 0, Mem::Gs(slot));
        asm.op_mem(false, &[0xff], 6, Mem::Gs(slot));
        asm.bytes(&[0x9d]);
        check(&asm.buf)
    };
    assert_eq!(through(FLAGS), Ok(()));
    assert!(through(TEMP).is_err() && through(RFLAGS).is_err());
    let mut asm = Asm::default();
    asm.store(Mem::Gs(FLAGS), RCX);
    assert!(check(&asm.buf).is_err(), "only what was pushed as flags gets there");
}

#[test]
fn no_part_of_a_check_can_be_left_out() {
    let tlb = Space::User.tlb();
    let len = Space::User.tlb_len() as i32;
    each_part_is_needed(
        "the short check",
        &[
            &|asm, _| asm.rorx(R11, R10, 7),
            &|asm, _| asm.and32(R11, (len - 1) * 32),
            &|asm, _| asm.op_mem(true, &[0x33], R10, Mem::GsR11(tlb + TAG_WRITE)),
            &|asm, _| asm.alu_imm(true, 7, R10, 4096 - 8),
            &|asm, misses| misses.push(asm.jcc(ABOVE)),
            &|asm, _| asm.op_mem(true, &[0x03], R10, Mem::GsR11(tlb + TLB_HOST)),
            &|asm, _| asm.store(Mem::at(R10, 0), R11),
        ],
    );
    each_part_is_needed(
        "the check that keeps flags",
        &[
            &|asm, _| asm.pext(R11, R10, Mem::Gs(INDEX_MASK)),
            &|asm, _| asm.lea32(R11, Mem::Sib { base: None, index: Some((R11, 4)), disp: 0 }),
            &|asm, _| asm.load(RCX, Mem::GsR11x8(tlb + TAG_READ)),
            &|asm, _| asm.not(RCX),
            &|asm, _| asm.lea(RCX, Mem::Sib { base: Some(RCX), index: Some((R10, 1)), disp: 8 }),
            &|asm, _| asm.pext(RCX, RCX, Mem::Gs(PAGE_MASK)),
            &|asm, misses| {
                let hit = asm.jrcxz();
                misses.push(asm.jmp());
                asm.link_short(hit);
            },
            &|asm, _| asm.load(R11, Mem::GsR11x8(tlb + TLB_DELTA)),
            &|asm, _| asm.lea(R10, Mem::Sib { base: Some(R10), index: Some((R11, 1)), disp: 0 }),
            &|asm, _| asm.load(R11, Mem::at(R10, 0)),
        ],
    );
}

/// The short check of the address in r10, then `use_it`.
fn checked(write: bool, size: i32, index_bits: i32, use_it: impl Fn(&mut Asm)) -> Result<(), String> {
    let (mut asm, tlb) = (Asm::default(), Space::User.tlb());
    asm.rorx(R11, R10, 7);
    asm.and32(R11, index_bits);
    asm.op_mem(true, &[0x33], R10, Mem::GsR11(tlb + if write { TAG_WRITE } else { TAG_READ }));
    asm.alu_imm(true, 7, R10, 4096 - size);
    let miss = asm.jcc(ABOVE);
    asm.op_mem(true, &[0x03], R10, Mem::GsR11(tlb + TLB_HOST));
    use_it(&mut asm);
    finish(asm, &[miss])
}

#[test]
fn a_checked_address_is_good_for_what_was_checked() {
    const RBX: u8 = 3;
    let bits = (Space::User.tlb_len() as i32 - 1) * 32;
    assert_eq!(checked(false, 8, bits, |asm| asm.load(RBX, Mem::at(R10, 0))), Ok(()));
    assert_eq!(checked(true, 8, bits, |asm| asm.store(Mem::at(R10, 0), RBX)), Ok(()));
    let refused: [(&str, Result<(), String>); 7] = [
        ("a write to what may be read", checked(false, 8, bits, |asm| asm.store(Mem::at(R10, 0), RBX))),
        ("more bytes", checked(false, 4, bits, |asm| asm.load(RBX, Mem::at(R10, 0)))),
        ("another place", checked(true, 8, bits, |asm| asm.load(RBX, Mem::at(R10, 8)))),
        (
            "another address",
            checked(true, 8, bits, |asm| {
                asm.lea(R10, Mem::at(R10, 8));
                asm.load(RBX, Mem::at(R10, 0));
            }),
        ),
        ("another index", checked(true, 8, bits >> 1 & !31, |asm| asm.load(RBX, Mem::at(R10, 0)))),
        ("an index past the end", checked(true, 8, bits * 2, |asm| asm.load(RBX, Mem::at(R10, 0)))),
        (
            "a bit far away", // bts [r10], rbx
            checked(true, 8, bits, |asm| asm.bytes(&[0x49, 0x0f, 0xab, 0x1a])),
        ),
    ];
    for (what, outcome) in refused {
        assert!(outcome.is_err(), "{what}");
    }
}

#[test]
fn a_jump_through_the_cache_needs_its_mask_and_its_key() {
    let jumps = Space::User.jumps();
    let len = Space::User.jump_len() as i32;
    let jump = |target: i32| {
        let mut asm = Asm::default();
        asm.rorx(R11, R10, 8);
        asm.and32(R11, len - 1);
        asm.bytes(&[0x41, 0xc1, 0xe3, 4]); // shl r11d, 4
        asm.op_mem(true, &[0x3b], R10, Mem::GsR11(jumps));
        let miss = asm.jcc(NOT_EQUAL);
        asm.jmp_mem(Mem::GsR11(target));
        finish(asm, &[miss])
    };
    assert_eq!(jump(jumps + JUMP_HOST), Ok(()));
    let tlb = Space::User.tlb() + TLB_HOST;
    for target in [jumps, jumps + JUMP_HOST + 1, tlb, Space::Kernel.jumps() + JUMP_HOST, PC_BASE] {
        assert!(jump(target).is_err(), "{target:#x}");
    }
    each_part_is_needed(
        "the jump",
        &[
            &|asm, _| asm.and32(R11, len - 1),
            &|asm, _| asm.bytes(&[0x41, 0xc1, 0xe3, 4]),
            &|asm, _| asm.op_mem(true, &[0x3b], R10, Mem::GsR11(jumps)),
            &|asm, misses| misses.push(asm.jcc(NOT_EQUAL)),
            &|asm, _| asm.jmp_mem(Mem::GsR11(jumps + JUMP_HOST)),
        ],
    );
    let mut asm = Asm::default();
    asm.jmp_mem(Mem::Gs(REFILL));
    assert!(check(&asm.buf).is_err());
}

/// `rep stosq` as blocks have it, with these limits, and one of the two checks.
fn string(limit: i32, end: i32, checked_side: u8, scale: u8, keep_flags: bool) -> Result<(), String> {
    let (mut asm, tlb) = (Asm::default(), Space::User.tlb());
    let bits = (Space::User.tlb_len() as i32 - 1) * 32;
    let mut misses = Vec::new();
    asm.alu_imm(true, 7, RCX, limit);
    misses.push(asm.jcc(ABOVE));
    asm.mov(R10, checked_side);
    asm.and32(R10, 0xfff);
    asm.lea(R10, Mem::Sib { base: Some(R10), index: Some((RCX, scale)), disp: 0 });
    asm.alu_imm(true, 7, R10, end);
    misses.push(asm.jcc(ABOVE));
    let retry = asm.here();
    asm.mov(R10, RDI);
    let missed = if keep_flags {
        asm.store(Mem::Gs(SPILL_RCX), RCX);
        asm.pext(R11, R10, Mem::Gs(INDEX_MASK));
        asm.lea32(R11, Mem::Sib { base: None, index: Some((R11, 4)), disp: 0 });
        asm.load(RCX, Mem::GsR11x8(tlb + TAG_WRITE));
        asm.not(RCX);
        asm.lea(RCX, Mem::Sib { base: Some(RCX), index: Some((R10, 1)), disp: 8 });
        asm.pext(RCX, RCX, Mem::Gs(PAGE_MASK));
        let hit = asm.jrcxz();
        let missed = asm.jmp();
        asm.link_short(hit);
        asm.load(RCX, Mem::Gs(SPILL_RCX));
        asm.load(R11, Mem::GsR11x8(tlb + TLB_DELTA));
        asm.lea(R10, Mem::Sib { base: Some(R10), index: Some((R11, 1)), disp: 0 });
        missed
    } else {
        asm.rorx(R11, R10, 7);
        asm.and32(R11, bits);
        asm.op_mem(true, &[0x33], R10, Mem::GsR11(tlb + TAG_WRITE));
        asm.alu_imm(true, 7, R10, 4096 - 8);
        let missed = asm.jcc(ABOVE);
        asm.op_mem(true, &[0x03], R10, Mem::GsR11(tlb + TLB_HOST));
        missed
    };
    asm.store(Mem::Gs(TEMP), R10);
    asm.load(R11, Mem::Gs(TEMP));
    asm.op_reg(true, &[0x87], R11, RDI);
    asm.bytes(&[0xf3, 0x48, 0xab]);
    asm.mov(RDI, R11);
    let done = asm.jmp();
    asm.link_here(missed);
    if keep_flags {
        asm.load(RCX, Mem::Gs(SPILL_RCX));
    }
    let refill = asm.call();
    let back = asm.jmp();
    asm.link(back, i64::from(retry));
    misses.push(done);
    for miss in misses {
        asm.link_here(miss);
    }
    let end = asm.jmp();
    let thunk_calls = vec![(refill, Thunk::Refill), (end, Thunk::JumpMiss)];
    verify(&Emitted { code: asm.buf, thunk_calls, ..Emitted::default() }, USER)
}

#[test]
fn strings_end_in_their_page() {
    for keep in [false, true] {
        assert_eq!(string(512, 4096, RDI, 8, keep), Ok(()));
        assert!(string(1024, 4096, RDI, 8, keep).is_err(), "the end could wrap");
        assert!(string(512, 4097, RDI, 8, keep).is_err(), "one byte too far");
        assert!(string(512, 4096, RSI, 8, keep).is_err(), "the other side was looked at");
        assert!(string(512, 4096, RDI, 4, keep).is_err(), "smaller elements were counted");
    }
}
