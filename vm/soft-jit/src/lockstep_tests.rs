//! Lock-step mode finds wrong translations.

use iced_x86::Code;
use soft_cpu::Exit;

use crate::Tuning;
use crate::bare_guest::Guest;

const CODE: u64 = 0x1000;
const DATA: u64 = 0x4000;

/// Runs `code`, which ends with HLT, at CPL 0 in lock-step; returns the exit and blocks compared.
fn run(tuning: Tuning, code: &[u8]) -> (Exit, u64) {
    let mut guest = Guest::new(Tuning { lockstep: true, ..tuning });
    guest.cpu.gpr[0] = 5;
    guest.cpu.gpr[3] = 3;
    guest.cpu.gpr[4] = DATA + 0x1000;
    guest.cpu.gpr[6] = DATA;
    guest.write(CODE, code);
    let exit = guest.run(CODE);
    assert_eq!(guest.counter("inconclusive comparisons"), 0);
    (exit, guest.counter("blocks compared in lock-step"))
}

fn must_catch(tuning: Tuning, code: &[u8], word: &str) {
    let right = Tuning { defect: None, ..Tuning::default() };
    let (exit, compared) = run(right, code);
    assert_eq!(exit, Exit::Halt, "the right translation");
    assert!(compared > 0);
    match run(tuning, code).0 {
        Exit::Crashed(why) => assert!(why.contains("Lock-step") && why.contains(word), "{why}"),
        other => panic!("the wrong translation passed: {other:?}"),
    }
}

fn instead(from: Code, to: Code) -> Tuning {
    Tuning { defect: Some((from, to)), ..Tuning::default() }
}

#[test]
fn a_wrong_register_is_found() {
    // add rax, rbx; hlt
    must_catch(instead(Code::Add_rm64_r64, Code::Sub_rm64_r64), &[0x48, 0x01, 0xd8, 0xf4], "rax is");
}

#[test]
fn a_wrong_store_is_found() {
    // or [rsi], rbx; xor ecx, ecx; hlt
    let code = [0x48, 0x09, 0x1e, 0x31, 0xc9, 0xf4];
    must_catch(instead(Code::Or_rm64_r64, Code::And_rm64_r64), &code, "physical 0x4000");
}

#[test]
fn a_wrong_vector_is_found() {
    // pcmpeqd xmm0, xmm0; pcmpeqd xmm1, xmm1; paddd xmm0, xmm1; hlt
    let code = [0x66, 0x0f, 0x76, 0xc0, 0x66, 0x0f, 0x76, 0xc9, 0x66, 0x0f, 0xfe, 0xc1, 0xf4];
    must_catch(instead(Code::Paddd_xmm_xmmm128, Code::Psubd_xmm_xmmm128), &code, "xmm0 is");
}

#[test]
fn a_wrong_flag_is_found_where_it_is_used() {
    // cmp rax, rbx; jmp over a hole; setb cl; hlt
    let code = [0x48, 0x39, 0xd8, 0xeb, 0x02, 0x90, 0x90, 0x0f, 0x92, 0xc1, 0xf4];
    let wrong = Tuning { defect: Some((Code::Cmp_rm64_r64, Code::Add_rm64_r64)), ..Tuning::default() };
    must_catch(wrong, &code, "rax is");
    // test rax, rax instead of cmp rax, rbx: only flags differ, and only `setne` shows it.
    let code = [0x48, 0x39, 0xc0, 0xeb, 0x02, 0x90, 0x90, 0x0f, 0x95, 0xc1, 0xf4];
    must_catch(instead(Code::Cmp_rm64_r64, Code::Test_rm64_r64), &code, "rcx is");
    let exact = Tuning { liveness: false, ..instead(Code::Cmp_rm64_r64, Code::Test_rm64_r64) };
    must_catch(exact, &code, "rflags is");
}

#[test]
fn flags_taken_for_dead_at_a_return_are_found() {
    // mov eax, target; push rax; cmp rax, rbx; mov rdx, [rsi]; ret; target: setb cl; hlt. By its tuning the translator
    // takes flags as dead at the return.
    let code = [
        0xb8, 0x0d, 0x10, 0x00, 0x00, 0x50, 0x48, 0x39, 0xc0, 0x48, 0x8b, 0x16, 0xc3, 0x0f, 0x94, 0xc1, 0xf4,
    ];
    let strict = Tuning { flags_dead_at_return: false, ..Tuning::default() };
    assert_eq!(run(strict, &code).0, Exit::Halt);
    match run(Tuning::default(), &code).0 {
        Exit::Crashed(why) => assert!(why.contains("rcx is"), "{why}"),
        other => panic!("flags that were lost went unseen: {other:?}"),
    }
}

#[test]
fn a_jump_to_the_next_instruction_is_no_difference() {
    // test rax, rax; jne +0; inc rcx; je +0; inc rcx; hlt
    let code = [0x48, 0x85, 0xc0, 0x75, 0, 0x48, 0xff, 0xc1, 0x74, 0, 0x48, 0xff, 0xc1, 0xf4];
    for tuning in [Tuning::default(), Tuning { extend: false, ..Tuning::default() }] {
        assert_eq!(run(tuning, &code).0, Exit::Halt);
    }
}
