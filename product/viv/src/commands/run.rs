//! `viv run`, `create` and `attach`: the sandbox of a folder, made or found, and sessions of its agent.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use sandbox::client::Held;
use sandbox::engine::Engine;
use sandbox::escape::{LONGEST, escaped};
use sandbox::folder::{Sandbox, Sandboxes, Wish};
use sandbox::places::Places;
use sandbox::spec::Spec;
use sandbox::{host, spec, workspace};

use crate::cli::{AttachOptions, NewOptions, RunOptions};
use crate::commands::{self, environment, may_interact, size};
use crate::failure::Failure;
use crate::{notices, session, setup, terminal};

/// The only agent there is so far.
const SHELL: &str = "shell";

/// The verb `run`.
pub(crate) fn run(options: &RunOptions, no_input: bool) -> Result<u8, Failure> {
    if options.detach && !options.arguments.is_empty() {
        return Err(Failure::new("with -d no session is opened that could have arguments")
            .hint("viv run -d AGENT FOLDER, then  viv exec NAME COMMAND"));
    }
    let env = environment(&options.env)?;
    let interactive = may_interact(no_input);
    let places = Places::from_env()?;
    let (sandbox, is_new) = find_or_make(&options.new, &places, interactive, Verb::Run)?;
    let held = if is_new {
        commands::hold(&sandbox, interactive)
    } else {
        commands::hold_known(&places, &sandbox, interactive)
    };
    let held = held?;
    if options.detach {
        held.keep()?;
        commands::say(&format!("{}\n", sandbox.spec.name))?;
        return Ok(0);
    }
    if is_new && options.arguments.is_empty() && terminal::is_interactive() {
        eprintln!("{}", headline(&sandbox, &places));
    }
    session_of_agent(&sandbox, held, env, &options.arguments)
}

/// The verb `create`.
pub(crate) fn create(options: &NewOptions, no_input: bool) -> Result<u8, Failure> {
    let (sandbox, is_new) =
        find_or_make(options, &Places::from_env()?, may_interact(no_input), Verb::Create)?;
    if !is_new {
        let name = &sandbox.spec.name;
        return Err(Failure::new(format!("{name} is there already, for the same agent and folder"))
            .hint(format!("viv attach {name} uses it; --name makes another one beside it")));
    }
    commands::say(&format!("{}\n", sandbox.spec.name))?;
    Ok(0)
}

/// The verb `attach`.
pub(crate) fn attach(options: &AttachOptions, no_input: bool) -> Result<u8, Failure> {
    let places = Places::from_env()?;
    let sandbox = Sandboxes::open(&places)?.find(&options.name)?;
    let env = environment(&options.env)?;
    let held = commands::hold_known(&places, &sandbox, may_interact(no_input))?;
    session_of_agent(&sandbox, held, env, &options.arguments)
}

/// A session of the sandbox's agent with these arguments.
fn session_of_agent(
    sandbox: &Sandbox,
    held: Held,
    env: Vec<Vec<u8>>,
    arguments: &[OsString],
) -> Result<u8, Failure> {
    // A command whose errors go elsewhere gets no terminal: there both its outputs would be one.
    let tty = terminal::is_interactive()
        && (arguments.is_empty() || std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let argv = std::iter::once(b"bash".to_vec())
        .chain(arguments.iter().map(|argument| argument.as_bytes().to_vec()))
        .collect();
    let wanted = session::Wanted {
        argv,
        env,
        cwd: sandbox.spec.guest_workspace().as_os_str().as_bytes().to_vec(),
        user: String::new(),
        tty,
        input: true,
    };
    let stream = held.agent()?;
    notices::watch(held);
    commands::say_if_stopped(sandbox, session::run(stream, wanted))
}

fn unknown_agent(given: &str) -> Failure {
    let failure = Failure::new(format!("there is no agent called \"{given}\""));
    if given.starts_with(['.', '/', '~']) {
        return failure.hint(format!("name the agent first:  viv run shell {given}"));
    }
    match sandbox::naming::nearest(given, &[SHELL]) {
        Some(name) => failure.hint(format!("did you mean {name}?  viv run {name}")),
        None => failure.hint("there is one so far:  viv run shell"),
    }
}

/// Refuses what the host has not; `most` is what it has for us.
fn enough_memory(memory: u64, most: u64) -> Result<(), Failure> {
    if most < host::LEAST_MEMORY {
        return Err(Failure::new(format!(
            "this host has {} of memory for us, and a sandbox needs {} or more",
            size(most),
            size(host::LEAST_MEMORY)
        ))
        .hint("raise the memory limit of the container or control group that viv runs in"));
    }
    if memory > most {
        let (asked, have) = (size(memory), size(most));
        let failure = Failure::new(format!("{asked} of memory cannot be had: this host has {have} for us"));
        return Err(failure.hint(format!(
            "--memory {}m at most; without it a sandbox has half of the host's, at most 8 GiB",
            most >> 20
        )));
    }
    Ok(())
}

/// What a new sandbox shall be; its image is not known yet.
fn wish(options: &NewOptions, places: &Places) -> Result<Wish, Failure> {
    let shares = workspace::resolve_all(&options.folders, places, options.force)?;
    let (cpus, memory, disk) = host::defaults();
    let parse = |text: &Option<String>, default| match text {
        Some(text) => spec::parse_size(text).map_err(|why| Failure::new(why).hint("--memory 4g, --disk 20g")),
        None => Ok(default),
    };
    let memory = parse(&options.memory, memory)?;
    enough_memory(memory, host::memory())?;
    let disk = parse(&options.disk, disk)?;
    if let Some(asked) = options.cpus
        && !(1..=cpus).contains(&asked)
    {
        let have = if cpus == 1 { "1 CPU".into() } else { format!("{cpus} CPUs") };
        return Err(Failure::new(format!("{asked} vCPUs cannot be had: this host has {have} for us"))
            .hint(format!("--cpus 1 to {cpus}; without it a sandbox has them all")));
    }
    let cpus = options.cpus.unwrap_or(cpus);
    if memory < host::LEAST_MEMORY {
        return Err(Failure::new("a sandbox needs 256 MiB of memory or more").hint("--memory 1g"));
    }
    if disk < host::LEAST_DISK {
        return Err(Failure::new("a sandbox needs a disk of 1 GiB or more")
            .hint("--disk 20g; only what is used takes room"));
    }
    if disk > host::MOST_DISK {
        return Err(Failure::new(format!(
            "a disk of {} is too large: it may have {}",
            size(disk),
            size(host::MOST_DISK)
        ))
        .hint("--disk 100g; only what is used takes room"));
    }
    if let Some(engine) = &options.engine
        && Engine::from_name(engine).is_none()
    {
        return Err(Failure::new(format!("there is no engine called \"{engine}\""))
            .hint("--engine kvm or --engine soft"));
    }
    if let Some(name) = &options.name {
        sandbox::naming::check(name)?;
    }
    Ok(Wish {
        name: options.name.clone(),
        agent: options.agent.clone(),
        shares,
        cpus,
        // Whole huge pages.
        memory: memory & !((2 << 20) - 1),
        disk: disk & !0xfff,
        engine: options.engine.clone(),
        image: String::new(),
    })
}

/// Who wants a sandbox.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Run,
    Create,
}

/// The sandbox that is meant, made if there is none, and whether it is new.
fn find_or_make(
    options: &NewOptions,
    places: &Places,
    interactive: bool,
    verb: Verb,
) -> Result<(Sandbox, bool), Failure> {
    if options.agent != SHELL {
        return Err(unknown_agent(&options.agent));
    }
    let sandboxes = Sandboxes::open(places)?;
    let mut wish = wish(options, places)?;
    // One whose first start failed, maybe for an engine that is of no use here, is made anew.
    let mut failed = None;
    match sandboxes.existing(&wish)? {
        Some(sandbox) if verb == Verb::Run && sandbox.never_started() => failed = Some(sandbox),
        Some(sandbox) => return Ok((adopt(sandbox, &wish, options, places)?, false)),
        None => {}
    }
    let engine = wish.engine.as_deref().and_then(Engine::from_name);
    // An engine that cannot be used is refused before anything is downloaded.
    let choice = sandbox::engine::choose(engine, places)?;
    if let (Some(Engine::Kvm), Some(help)) = (engine, &choice.would_help) {
        eprintln!("viv: {help}; a guest may not come up at all");
    }
    wish.image = setup::ensure_image(places, engine, interactive)?;
    // One of these may be what the user looks for.
    for error in sandboxes.list()?.1 {
        eprintln!("viv: {}", escaped(&error.to_string(), LONGEST));
    }
    // Not before all that may still go wrong has gone well.
    if let Some(failed) = failed {
        let mut anew = wish.clone();
        let said = keep_what_was_decided(&mut anew, &failed.spec, options);
        workspace::check_overlaps(&anew.shares)?;
        if let Some(sandbox) = failed.remove_if_it_never_started()? {
            return Ok((adopt(sandbox, &wish, options, places)?, false));
        }
        eprintln!("viv: {said}");
        wish = anew;
    }
    match sandboxes.create(&wish)? {
        (sandbox, true) => Ok((sandbox, true)),
        // Another client was faster, or there is one with a name of its own.
        (sandbox, false) => Ok((adopt(sandbox, &wish, options, places)?, false)),
    }
}

/// Takes over what was decided for a sandbox whose first start failed and is not decided otherwise now, but for the engine, which may be
/// why it failed. Gives the word on that.
fn keep_what_was_decided(wish: &mut Wish, before: &Spec, options: &NewOptions) -> String {
    wish.name.get_or_insert_with(|| before.name.clone());
    // Still no more than the host has now.
    if options.cpus.is_none() {
        wish.cpus = wish.cpus.min(before.cpus);
    }
    if options.memory.is_none() {
        wish.memory = before.memory.min(host::memory().max(wish.memory));
    }
    if options.disk.is_none() {
        wish.disk = before.disk;
    }
    for share in &before.shares {
        match wish.shares.iter_mut().find(|named| named.path == share.path) {
            Some(named) => named.read_only |= share.read_only,
            None => wish.shares.push(share.clone()),
        }
    }
    let what = format!("{} never came up and is made anew, with what was decided for it", before.name);
    match (&before.engine, &wish.engine) {
        (Some(engine), None) => format!("{what}, but for the engine {engine}"),
        _ => what,
    }
}

fn adopt(
    mut sandbox: Sandbox,
    wish: &Wish,
    options: &NewOptions,
    places: &Places,
) -> Result<Sandbox, Failure> {
    sandbox.adopt(&wish.shares)?;
    say_what_stays(&sandbox, wish, options, places);
    Ok(sandbox)
}

/// What was decided when a sandbox was made stays; a wish for something else is not passed over in silence.
fn say_what_stays(sandbox: &Sandbox, wish: &Wish, options: &NewOptions, places: &Places) {
    let spec = &sandbox.spec;
    let mut stays = Vec::new();
    if options.cpus.is_some() && spec.cpus != wish.cpus {
        stays.push(format!("{} CPUs", spec.cpus));
    }
    if options.memory.is_some() && spec.memory != wish.memory {
        stays.push(format!("{} of memory", size(spec.memory)));
    }
    if options.disk.is_some() && spec.disk != wish.disk {
        stays.push(format!("a disk of {}", size(spec.disk)));
    }
    if options.engine.is_some() && spec.engine != wish.engine {
        stays.push(format!("the engine {}", spec.engine.as_deref().unwrap_or("that suits the host")));
    }
    for share in wish.shares.iter().filter(|share| !spec.shares.iter().any(|known| known.is_like(share))) {
        stays.push(format!("{} read-only", escaped(&places.short(&share.path), LONGEST)));
    }
    if !stays.is_empty() {
        eprintln!(
            "viv: {} was made before and keeps {}   viv rm {} makes room for another",
            spec.name,
            stays.join(", "),
            spec.name
        );
    }
}

/// What a new sandbox has, in one line.
fn headline(sandbox: &Sandbox, places: &Places) -> String {
    let spec = &sandbox.spec;
    let cpus = if spec.cpus == 1 { "1 CPU".into() } else { format!("{} CPUs", spec.cpus) };
    let workspace = escaped(&places.short(spec.workspace()), LONGEST);
    format!("{}  {cpus}  {}  {workspace}", spec.name, size(spec.memory))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use sandbox::workspace::Share;

    use super::*;
    use crate::cli::{Cli, Command};

    fn options(words: &[&str]) -> NewOptions {
        match Cli::parse_from(["viv", "create", "shell"].iter().chain(words)).command {
            Command::Create(options) => options,
            _ => unreachable!("it is what was asked for"),
        }
    }

    #[test]
    fn what_is_hinted_at_can_be_had() {
        let hint = |memory, most| enough_memory(memory, most).unwrap_err().hint.unwrap();
        assert!(hint(1 << 40, (2 << 30) + 5).starts_with("--memory 2048m at most"));
        assert!(enough_memory(2048 << 20, (2 << 30) + 5).is_ok());
        // No size that could be named would help.
        assert!(!hint(256 << 20, 100 << 20).contains("--memory"));
    }

    #[test]
    fn what_was_decided_is_kept_when_a_first_start_failed() {
        let share = |path: &str, read_only| Share { path: path.into(), read_only, identity: None };
        let before = Spec {
            schema: 1,
            id: "0123".into(),
            name: "box".into(),
            agent: "shell".into(),
            arch: "x86_64".into(),
            created: String::new(),
            shares: vec![share("/w", false), share("/data", true)],
            cpus: 1,
            memory: 300 << 20,
            disk: 200 << 30,
            engine: Some("kvm".into()),
            image: "i".into(),
        };
        let wish = || Wish {
            name: None,
            agent: "shell".into(),
            shares: vec![share("/w", false)],
            cpus: 4,
            memory: 2 << 30,
            disk: 64 << 30,
            engine: None,
            image: "j".into(),
        };
        let mut kept = wish();
        let said = keep_what_was_decided(&mut kept, &before, &options(&[]));
        assert!(said.starts_with("box never came up") && said.ends_with("but for the engine kvm"), "{said}");
        assert_eq!((kept.name.as_deref(), kept.cpus, kept.memory), (Some("box"), 1, 300 << 20));
        assert_eq!((kept.disk, &kept.shares, kept.image.as_str()), (200 << 30, &before.shares, "j"));

        // What is said now holds.
        let mut said_now = wish();
        said_now.engine = Some("soft".into());
        let named = ["--cpus", "4", "-m", "2g", "--disk", "64g"];
        let said = keep_what_was_decided(&mut said_now, &before, &options(&named));
        assert!(!said.contains("engine"), "{said}");
        assert_eq!((said_now.cpus, said_now.memory, said_now.disk), (4, 2 << 30, 64 << 30));
    }
}
