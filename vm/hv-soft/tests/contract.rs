//! The contract suite on the software CPU as the product uses it.

mod translated;

use soft_jit::Tuning;

/// What translated code does otherwise than a processor.
const TRANSLATION_LACKS: &[(&str, &str)] = &[(
    "exceptions::fault_keeps_flags",
    "status flags before an instruction that would have set them all (softcpu.md §2.2: they are dead there), when it faults",
)];

fn main() {
    translated::main(Tuning::default(), |case| {
        let lacks = TRANSLATION_LACKS.iter().find(|(name, _)| *name == case);
        lacks.map(|(_, what)| format!("translated code does not keep {what}"))
    });
}
