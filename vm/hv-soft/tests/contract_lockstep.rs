//! The contract suite with each translated block compared with the interpreter.

use std::sync::Arc;

use hv_soft::{ExecutorKind, SoftEngine};
use soft_jit::Tuning;

fn main() {
    let Ok(tuning) = Tuning::parse("lockstep,no-liveness") else { unreachable!("known words") };
    hv_contract::main(Arc::new(SoftEngine::with_executor(ExecutorKind::Translator(tuning))), |_case| None);
}
