//! The contract suite on the software CPU with the interpreter as executor.

use std::sync::Arc;

use hv_soft::{ExecutorKind, SoftEngine};

fn main() {
    hv_contract::main(Arc::new(SoftEngine::with_executor(ExecutorKind::Interpreter)), |_case| None);
}
