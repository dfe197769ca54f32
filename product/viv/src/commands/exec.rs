//! `viv exec`: one command in a sandbox, which is started if need be.

use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use sandbox::folder::Sandboxes;
use sandbox::places::Places;

use crate::cli::ExecOptions;
use crate::commands::{HINTS, environment, hold_known, may_interact, say_if_stopped};
use crate::failure::Failure;
use crate::{notices, session};

/// The verb.
pub(crate) fn run(options: ExecOptions, no_input: bool) -> Result<u8, Failure> {
    let places = Places::from_env()?;
    let sandbox = Sandboxes::open(&places)?.find(&options.name)?;
    if options.tty && options.interactive && !std::io::stdin().is_terminal() {
        return Err(Failure::new("a terminal was asked for with -t, but the input is not one")
            .hint("leave -t out:  viv exec -i NAME COMMAND"));
    }
    let held = hold_known(&places, &sandbox, HINTS, may_interact(no_input))?;
    let workspace = sandbox.spec.guest_workspace();
    let folder =
        options.workdir.as_ref().map_or_else(|| workspace.to_owned(), |dir| workspace.join(Path::new(dir)));
    let wanted = session::Wanted {
        argv: options.command.iter().map(|word| word.as_bytes().to_vec()).collect(),
        env: environment(&options.env)?,
        cwd: folder.as_os_str().as_bytes().to_vec(),
        user: options.user.unwrap_or_default(),
        tty: options.tty,
        input: options.interactive,
    };
    let stream = held.agent()?;
    notices::watch(Arc::new(held), &sandbox);
    let outcome = session::run(stream, wanted);
    notices::last_words(&sandbox);
    say_if_stopped(&sandbox, outcome)
}
