//! The interpreter against the host's own CPU: random instructions with random registers, flags and memory run natively
//! and through `step`, and everything must agree but what the manual leaves undefined.
//!
//! `VIV_DIFFERENTIAL=N` asks for N instructions instead of the normal count, `VIV_DIFFERENTIAL_SEED=N` for another stream.
#![expect(unsafe_code, reason = "runs generated machine code on this CPU")]

mod generate;
mod guest;
mod native;

use generate::{Case, Generator};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};

/// Everything an instruction can see and change, except its own bytes.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Encoding order.
    pub(crate) gpr: [u64; 16],
    /// The six status flags and DF.
    pub(crate) flags: u64,
    /// Standard layout, all components present.
    pub(crate) xsave: Box<[u8; 832]>,
    /// The data pages.
    pub(crate) data: Box<[u8; DATA_BYTES]>,
}

/// Linear address of the instruction.
pub(crate) const CODE: u64 = 0x2800_0100;
/// Linear address of the data pages.
pub(crate) const DATA: u64 = 0x3000_0000;
/// Bytes of data.
pub(crate) const DATA_BYTES: usize = 0x4000;
/// The flags that are compared and set.
pub(crate) const FLAGS: u64 = 0xcd5;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn the_interpreter_agrees_with_the_host() {
    let count = number("VIV_DIFFERENTIAL", 30_000);
    let mut generator = Generator::new(number("VIV_DIFFERENTIAL_SEED", 1));
    let mut native = native::Native::new();
    let mut guest = guest::Guest::new();
    let mut mnemonics = std::collections::BTreeMap::<String, u32>::new();
    let mut failures = std::collections::BTreeMap::<String, (u32, String)>::new();
    for _ in 0..count {
        let case = generator.next_case();
        if shifts_too_far(&case) {
            continue;
        }
        *mnemonics.entry(format!("{:?}", case.instruction.mnemonic())).or_default() += 1;
        if std::env::var_os("VIV_DIFFERENTIAL_TRACE").is_some() {
            eprintln!("{:?} {:02x?}", case.instruction.code(), case.bytes);
        }
        let mut expected = case.machine.clone();
        native.run(&case.bytes, &mut expected);
        let mut got = case.machine.clone();
        let outcome = guest.run(&case.bytes, &mut got);
        let undefined = u64::from(undefined_flags(&case.instruction));
        let trouble = match outcome {
            Err(what) => Some(what),
            Ok(()) => difference(&case.machine, &expected, &got, undefined),
        };
        if let Some(trouble) = trouble {
            let text = format!("{:02x?}: {trouble}", case.bytes);
            failures.entry(format!("{:?}", case.instruction.code())).or_insert((0, text)).0 += 1;
        }
    }
    println!("{count} instructions, {} mnemonics", mnemonics.len());
    for (code, (times, first)) in &failures {
        println!("{code} x{times}: {first}");
    }
    assert!(mnemonics.len() > 300, "the generator reached {} mnemonics only", mnemonics.len());
    assert!(failures.is_empty(), "{} kinds of instruction differ from the host", failures.len());
}

/// A double shift of 16 bits by more is undefined, and processors differ (Intel SDM 2B, SHLD; AMD APM 3).
fn shifts_too_far(case: &Case) -> bool {
    let count = match case.instruction.code() {
        Code::Shld_rm16_r16_imm8 | Code::Shrd_rm16_r16_imm8 => u64::from(case.instruction.immediate8()),
        Code::Shld_rm16_r16_CL | Code::Shrd_rm16_r16_CL => case.machine.gpr[1],
        _ => return false,
    };
    count & 31 > 16
}

/// In RFLAGS positions.
fn undefined_flags(instruction: &Instruction) -> u32 {
    use iced_x86::RflagsBits as Bits;
    let mut bits = instruction.rflags_undefined();
    // Where a rotate through the carry goes the whole way round, iced says that it changes nothing.
    let once = instruction.op1_kind() == OpKind::Immediate8 && instruction.immediate8() == 1;
    if matches!(instruction.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr) && !once {
        bits |= Bits::OF;
    }
    [(Bits::OF, 0x800), (Bits::SF, 0x80), (Bits::ZF, 0x40), (Bits::AF, 0x10), (Bits::CF, 1), (Bits::PF, 4)]
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, flag)| flag)
        .sum()
}

fn difference(before: &Machine, expected: &Machine, got: &Machine, undefined: u64) -> Option<String> {
    for register in 0..16 {
        if expected.gpr[register] != got.gpr[register] {
            return Some(format!(
                "r{register} was {:#x}, should be {:#x}, is {:#x}",
                before.gpr[register], expected.gpr[register], got.gpr[register]
            ));
        }
    }
    if (expected.flags ^ got.flags) & !undefined != 0 {
        return Some(format!(
            "flags {:#x} should be {:#x}, are {:#x}",
            before.flags, expected.flags, got.flags
        ));
    }
    if let Some(at) = (0..DATA_BYTES).find(|at| expected.data[*at] != got.data[*at]) {
        return Some(format!(
            "memory at +{at:#x} should be {:#x}, is {:#x}",
            expected.data[at], got.data[at]
        ));
    }
    let compared = |at: &usize| !(6..24).contains(at) && !(28..32).contains(at) && !(416..576).contains(at);
    let at = (0..832).filter(compared).find(|at| expected.xsave[*at] != got.xsave[*at])?;
    Some(format!(
        "xsave byte {at} was {:#x}, should be {:#x}, is {:#x}",
        before.xsave[at], expected.xsave[at], got.xsave[at]
    ))
}
