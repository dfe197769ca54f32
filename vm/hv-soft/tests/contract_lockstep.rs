//! The contract suite with each translated block compared with the interpreter.

mod translated;

use soft_jit::Tuning;

fn main() {
    let Ok(tuning) = Tuning::parse("lockstep,no-liveness") else { unreachable!("known words") };
    translated::main(tuning, |_case| None);
}
