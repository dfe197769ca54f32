//! A vmm that was taken over cannot break out: each attempt in a real sandbox's vmm ends as `confine::ATTEMPTS` has it. Without an image
//! on this machine every case is skipped, with the reason, and counted.

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, LazyLock};

use confine::ATTEMPTS;
use hostile::{Hostile, confined};
use libtest_mimic::{Arguments, Completion, Trial};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap_or(Path::new("/var/tmp"));
    let of_confined = target.join("hostile");
    // The same attempts with and without each part of the confinement, in processes of confine's own test.
    let own = Trial::test("confined", move || confined(&of_confined).map_err(Into::into));
    // Built when the first case runs, which takes as long as all of viv.
    let hostile: Arc<LazyLock<Result<Hostile, String>, _>> =
        Arc::new(LazyLock::new(move || Hostile::prepare(target)));
    let trials = ATTEMPTS.iter().map(|attempt| {
        let hostile = hostile.clone();
        Trial::ignorable_test(attempt.name, move || match hostile.as_ref().as_ref() {
            Ok(hostile) => {
                let how = hostile.attempt(attempt)?;
                println!("{how}");
                Ok(Completion::Completed)
            }
            Err(why) if why.starts_with("there is no image") => Ok(Completion::ignored_with(why)),
            Err(why) => Err(why.clone().into()),
        })
    });
    libtest_mimic::run(&arguments, std::iter::once(own).chain(trials).collect()).exit_code()
}
