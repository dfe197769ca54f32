//! The contract suite with every optimisation of the translator off. Nothing is left out here.

mod translated;

use soft_jit::Tuning;

fn main() {
    translated::main(Tuning::plain(), |_case| None);
}
