//! `viv run`, `create` and `attach`: the sandbox of a folder, made or found, and sessions of its agent.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sandbox::client::{self, Held};
use sandbox::control::Attention;
use sandbox::engine::Engine;
use sandbox::escape::{LONGEST, escaped};
use sandbox::folder::{Sandbox, Sandboxes, Wish};
use sandbox::network::log::LogReader;
use sandbox::network::policy_files;
use sandbox::places::Places;
use sandbox::spec::{Networking, Spec};
use sandbox::{host, spec, workspace};

use crate::cli::{AttachOptions, NewOptions, RunOptions};
use crate::commands::policy::observed_since;
use crate::commands::{self, HINTS, environment, may_interact, size};
use crate::failure::Failure;
use crate::{notices, session, setup, ssh, terminal};

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
    if options.ask && !interactive {
        return Err(Failure::new("--ask asks on a terminal, and there is none")
            .hint("viv policy allow says beforehand what may be reached; --observe finds out what that is"));
    }
    let granted = ssh::granted(&options.ssh)?;
    if options.detach && granted.is_some() {
        return Err(Failure::new("with -d no session is there that could lend the SSH agent")
            .hint("viv attach --ssh-agent HOST NAME does, as long as that session goes on"));
    }
    let attention = Attention { asks: options.ask, observes: options.observe, ..HINTS };
    let places = Places::from_env()?;
    let (sandbox, is_new) = find_or_make(&options.new, &places, interactive, Verb::Run)?;
    let before = options.observe.then(|| LogReader::at_end(sandbox.folder()));
    let held = if is_new {
        commands::hold(&sandbox, attention, interactive)
    } else {
        commands::hold_known(&places, &sandbox, attention, interactive)
    };
    let held = held?;
    if !is_new {
        publish(&sandbox, &options.new)?;
    }
    if options.detach {
        held.keep()?;
        commands::say(&format!("{}\n", sandbox.spec.name))?;
        return Ok(0);
    }
    if is_new && options.arguments.is_empty() && terminal::is_interactive() {
        eprintln!("{}", headline(&sandbox, &places));
    }
    let outcome = session_of_agent(&sandbox, held, env, granted, &options.arguments);
    if let Some(mut before) = before {
        say_what_was_needed(&places, &sandbox, &mut before)?;
    }
    outcome
}

/// How long the gateway's last records may take to be in the log.
const LAST_RECORDS: Duration = Duration::from_millis(700);

/// The end of `--observe`: the rules that the work would need, and what was refused or failed all the same.
fn say_what_was_needed(places: &Places, sandbox: &Sandbox, log: &mut LogReader) -> Result<(), Failure> {
    std::thread::sleep(LAST_RECORDS);
    for line in observed_since(places, sandbox, log)? {
        eprintln!("{}", escaped(&line, LONGEST));
    }
    Ok(())
}

/// Publishes what is asked for and not published yet, of a sandbox that was there before.
fn publish(sandbox: &Sandbox, options: &NewOptions) -> Result<(), Failure> {
    let there = commands::ports::published(sandbox)?;
    for wanted in commands::ports::parse(&options.publish)? {
        if !there.iter().any(|known| wanted.means(known)) {
            client::publish(sandbox, wanted)?;
        }
    }
    Ok(())
}

/// The verb `create`.
pub(crate) fn create(options: &NewOptions, no_input: bool) -> Result<u8, Failure> {
    let (sandbox, _) = find_or_make(options, &Places::from_env()?, may_interact(no_input), Verb::Create)?;
    commands::say(&format!("{}\n", sandbox.spec.name))?;
    Ok(0)
}

/// What is said of a wish for a sandbox that is there. Nothing of it is changed.
fn there_already(sandbox: &Sandbox, wish: &Wish, options: &NewOptions) -> Failure {
    let name = &sandbox.spec.name;
    let has = |wanted: &workspace::Share| {
        let known = sandbox.spec.shares.iter().find(|known| known.path == wanted.path);
        known.is_some_and(|known| known.read_only || !wanted.read_only)
    };
    if wish.shares.iter().all(has) {
        return Failure::new(format!("{name} is there already, for the same agent and folder"))
            .hint(format!("viv attach {name} uses it; another --name makes one beside it"));
    }
    // It takes further folders when it starts.
    let stop = if sandbox.is_running() { format!("viv stop {name} && ") } else { String::new() };
    Failure::new(format!(
        "{name} is there already, for the same agent and folder but not with all these folders"
    ))
    .hint(format!("{stop}{}   opens it with them; another --name makes one beside it", run_line(options)))
}

/// The `viv run` with the same words.
fn run_line(options: &NewOptions) -> String {
    let mut line = format!("viv run {}", options.agent);
    if let Some(name) = &options.name {
        line.push_str(&format!(" --name {name}"));
    }
    if options.force {
        line.push_str(" --force");
    }
    for folder in &options.folders {
        line.push(' ');
        line.push_str(&policy::command_line(&[folder.to_string_lossy()]));
    }
    line
}

/// The verb `attach`.
pub(crate) fn attach(options: &AttachOptions, no_input: bool) -> Result<u8, Failure> {
    let places = Places::from_env()?;
    let sandbox = Sandboxes::open(&places)?.find(&options.name)?;
    let env = environment(&options.env)?;
    let granted = ssh::granted(&options.ssh)?;
    let held = commands::hold_known(&places, &sandbox, HINTS, may_interact(no_input))?;
    session_of_agent(&sandbox, held, env, granted, &options.arguments)
}

/// A session of the sandbox's agent with these arguments.
fn session_of_agent(
    sandbox: &Sandbox,
    held: Held,
    mut env: Vec<Vec<u8>>,
    granted: Option<ssh::Granted>,
    arguments: &[OsString],
) -> Result<u8, Failure> {
    let held = Arc::new(held);
    if let Some(granted) = granted {
        env.push(ssh::forward(&held, granted)?);
    }
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
    notices::watch(held, sandbox);
    let outcome = session::run(stream, wanted);
    notices::last_words(sandbox);
    commands::say_if_stopped(sandbox, outcome)
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
    let network = match options.network.as_deref() {
        None | Some("gateway") => Networking::Gateway,
        Some("none") => Networking::None,
        Some(other) => {
            let other = escaped(other, LONGEST);
            return Err(Failure::new(format!("there is no network called \"{other}\""))
                .hint("--network none; without it viv policy decides what can be reached"));
        }
    };
    let kits: Vec<PathBuf> = options.kit.iter().map(PathBuf::from).collect();
    // A mistake in one is said before anything is made.
    for kit in &kits {
        policy_files::given_kit(kit)?;
    }
    let ports = commands::ports::parse(&options.publish)?;
    if network == Networking::None && !ports.is_empty() {
        return Err(Failure::new("a sandbox without a network publishes no ports")
            .hint("leave out --network none or --publish"));
    }
    for port in &ports {
        port.bind().map_err(|error| port.refusal(&error))?;
    }
    Ok(Wish {
        network,
        kits,
        ports,
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
        Some(sandbox) if verb == Verb::Create => return Err(there_already(&sandbox, &wish, options)),
        Some(sandbox) if sandbox.never_started() => failed = Some(sandbox),
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
    commands::say_damaged(&sandboxes.list()?.1);
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
        (sandbox, false) if verb == Verb::Create => Err(there_already(&sandbox, &wish, options)),
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
    if options.network.is_some() && spec.network != wish.network {
        stays.push(match spec.network {
            Networking::Gateway => "its network".into(),
            Networking::None => "no network".into(),
        });
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
    let network = preset_of(sandbox, places);
    format!("{}  {cpus}  {}  {workspace}  network: {network}", spec.name, size(spec.memory))
}

/// The preset that holds for a sandbox, in a word.
pub(crate) fn preset_of(sandbox: &Sandbox, places: &Places) -> String {
    if sandbox.spec.network == Networking::None {
        return "none".into();
    }
    match policy_files::set(places, sandbox, &[]) {
        Ok(set) => set.preset.to_string(),
        Err(_) => "unreadable".into(),
    }
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
    fn what_is_hinted_at_for_a_sandbox_that_is_there_can_be_typed() {
        let line = |words: &[&str]| run_line(&options(words));
        assert_eq!(
            line(&["--name", "shell-api", "api", "data:ro"]),
            "viv run shell --name shell-api api data:ro"
        );
        assert_eq!(line(&["my api", "it's:ro", "~x"]), r"viv run shell 'my api' 'it'\''s:ro' '~x'");
        assert_eq!(line(&[]), "viv run shell");
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
            network: Networking::Gateway,
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
            network: Networking::Gateway,
            kits: Vec::new(),
            ports: Vec::new(),
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
