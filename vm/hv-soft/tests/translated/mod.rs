//! The contract suite on translated code; the verifier reads every block.

use std::sync::Arc;

use hv_soft::{ExecutorKind, SoftEngine};
use soft_jit::Tuning;

pub(crate) fn main(tuning: Tuning, gap: impl Fn(&str) -> Option<String>) -> ! {
    let executor = ExecutorKind::Translator(Tuning { verify: true, ..tuning });
    hv_contract::main(Arc::new(SoftEngine::with_executor(executor)), gap)
}
