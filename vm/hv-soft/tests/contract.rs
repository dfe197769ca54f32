//! The contract suite on the software CPU as the product uses it.

use std::sync::Arc;

use hv_soft::{ExecutorKind, SoftEngine};
use soft_jit::Tuning;

fn main() {
    let executor = ExecutorKind::Translator(Tuning::default());
    hv_contract::main(Arc::new(SoftEngine::with_executor(executor)), |_case| None);
}
