//! `viv run`, `create` and `attach`: the sandbox of a folder, made or found, and sessions of its agent.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use sandbox::client::Held;
use sandbox::engine::Engine;
use sandbox::escape::{LONGEST, escaped};
use sandbox::folder::{Sandbox, Sandboxes, Wish};
use sandbox::places::Places;
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
    let (sandbox, is_new) = find_or_make(&options.new, &places, interactive)?;
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
    let (sandbox, is_new) = find_or_make(options, &Places::from_env()?, may_interact(no_input))?;
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

/// What a new sandbox shall be; its image is not known yet.
fn wish(options: &NewOptions, places: &Places) -> Result<Wish, Failure> {
    let shares = workspace::resolve_all(&options.folders, places, options.force)?;
    let (cpus, memory, disk) = host::defaults();
    let parse = |text: &Option<String>, default| match text {
        Some(text) => spec::parse_size(text).map_err(|why| Failure::new(why).hint("--memory 4g, --disk 20g")),
        None => Ok(default),
    };
    let memory = parse(&options.memory, memory)?;
    let most = host::memory();
    if memory > most {
        return Err(Failure::new(format!(
            "{} of memory cannot be had: this host has {} for us",
            size(memory),
            size(most)
        ))
        .hint("--memory 4g; without it a sandbox has half of the host's, at most 8 GiB"));
    }
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

/// The sandbox that is meant, made if there is none, and whether it is new.
fn find_or_make(
    options: &NewOptions,
    places: &Places,
    interactive: bool,
) -> Result<(Sandbox, bool), Failure> {
    if options.agent != SHELL {
        return Err(unknown_agent(&options.agent));
    }
    let sandboxes = Sandboxes::open(places)?;
    let mut wish = wish(options, places)?;
    // What its failed first start was made with, such as an engine that is of no use here, is not kept for the next one.
    let existing = sandboxes.existing(&wish)?.map(Sandbox::remove_if_it_never_started).transpose()?.flatten();
    if let Some(sandbox) = existing {
        return Ok((adopt(sandbox, &wish, options, places)?, false));
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
    match sandboxes.create(&wish)? {
        (sandbox, true) => Ok((sandbox, true)),
        // Another client was faster, or there is one with a name of its own.
        (sandbox, false) => Ok((adopt(sandbox, &wish, options, places)?, false)),
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
