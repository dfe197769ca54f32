//! The command line. Verbs and flags as Docker and sbx have them; each help begins with examples.

mod policy;
pub(crate) mod secret;

use std::ffi::OsString;

use clap::{ArgAction, Args, Parser, Subcommand};

pub(crate) use policy::{
    AllowOptions, ApproveOptions, DenyOptions, InitOptions, PolicyCheckOptions, PolicyCommand,
    PolicyLogOptions, PolicyOptions, PortsOptions, ResetOptions, RuleInspectOptions, RuleLsOptions,
    RuleOptions, RuleRmOptions,
};

const TOP_EXAMPLES: &str = "\
Examples:
  viv run shell                        a shell in a microVM of its own, in the current folder
  viv run shell . -- -c 'docker ps'    one command in it";

const RUN_EXAMPLES: &str = "\
Examples:
  viv run shell                        a shell in the current folder
  viv run shell ~/src/api /data:ro     that folder, and another one that may only be read";

const CREATE_EXAMPLES: &str = "\
Examples:
  viv create shell ~/src/api           make a sandbox and start nothing yet
  viv create shell . --cpus 2 -m 2g    with two CPUs and 2 GiB of memory";

const ATTACH_EXAMPLES: &str = "\
Examples:
  viv attach shell-api                 another session in a sandbox, started if need be
  viv attach shell-api -- -c 'make'    one command of its agent";

const INSPECT_EXAMPLES: &str = "\
Examples:
  viv inspect shell-api                all that is known of a sandbox, as JSON
  viv inspect shell-api | jq .state    one thing of it
  viv inspect shell-api shell-web      several: one JSON array";

const LOGS_EXAMPLES: &str = "\
Examples:
  viv logs shell-api                   what its kernel, agent, dockerd, vmm and shim said
  viv logs -f -n 20 shell-api dockerd  the end of dockerd's log, and what comes";

const CP_EXAMPLES: &str = "\
Examples:
  viv cp shell-api:/etc/apt .          a folder or file out of a sandbox
  viv cp -u root ca.crt shell-api:/etc/ssl/certs/   into it, as root";

const PRUNE_EXAMPLES: &str = "\
Examples:
  viv prune --dry-run                  what would be deleted, and how much room that makes
  viv prune --images                   asks, then deletes images and downloads of older versions";

const EXEC_EXAMPLES: &str = "\
Examples:
  viv exec shell-api uname -r          one command in a sandbox
  viv exec -it -u root shell-api bash  a shell as root";

const LS_EXAMPLES: &str = "\
Examples:
  viv ls                               all sandboxes
  viv ls --json                        the same for programs, one object a line
  viv ls -q                            names only; with --json as one array";

const STOP_EXAMPLES: &str = "\
Examples:
  viv stop shell-api                   shut it down; its disk stays
  viv stop shell-api shell-web         several";

const START_EXAMPLES: &str = "\
Examples:
  viv start shell-api                  start it; without a session it stops after 30 seconds
  viv start -d shell-api shell-web     several, to run until viv stop";

const RM_EXAMPLES: &str = "\
Examples:
  viv rm shell-api                     asks, then deletes it with its disk
  viv rm -f shell-api                  does not ask, and stops it before if need be";

const CHECK_EXAMPLES: &str = "\
Examples:
  viv check shell-api                  look at a stopped sandbox's disk and its file system
  viv check --json shell-api           the same for programs";

const DIAGNOSE_EXAMPLES: &str = "\
Examples:
  viv diagnose                         which engine is used here, and why
  viv diagnose --json                  the same for programs";

/// Runs each AI-agent session in a microVM of its own.
#[derive(Debug, Parser)]
#[command(name = "viv", version, before_help = TOP_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// Say what is done; twice for more (VIV_LOG takes a filter)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Ask nothing and draw no progress bars, also on a terminal
    #[arg(long, global = true)]
    pub(crate) no_input: bool,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run an agent in a folder: make the sandbox, or attach to the one that is there
    Run(RunOptions),
    /// Make a sandbox and start nothing yet
    Create(NewOptions),
    /// Open a session of its agent in a sandbox
    Attach(AttachOptions),
    /// Run a command in a sandbox
    Exec(ExecOptions),
    /// List sandboxes
    #[command(visible_alias = "list")]
    Ls(LsOptions),
    /// Start stopped sandboxes; one without sessions stops again after 30 seconds, but for -d
    Start(StartOptions),
    /// Shut sandboxes down; their disks stay
    Stop(StopOptions),
    /// Delete sandboxes with their disks
    Rm(RmOptions),
    /// Look whether a stopped sandbox's disk is whole; nothing on it is changed
    Check(CheckOptions),
    /// Show the logs of a sandbox, also when it is stopped
    Logs(LogsOptions),
    /// Copy files and folders into a sandbox or out of it
    Cp(CpOptions),
    /// Delete all stopped sandboxes, and images that none needs
    Prune(PruneOptions),
    /// Say what sandboxes may reach, and see what they did
    Policy(PolicyOptions),
    /// Show or change which ports of a sandbox can be reached from this host
    Ports(PortsOptions),
    /// Show all that is known of sandboxes, as JSON
    Inspect(InspectOptions),
    /// Keep credentials that sandboxes use and never see
    Secret(secret::SecretOptions),
    /// Say which engine is used here and why, and what would make it faster
    Diagnose(DiagnoseOptions),
}

/// What a new sandbox shall be.
#[derive(Debug, Args)]
#[command(before_help = CREATE_EXAMPLES)]
pub(crate) struct NewOptions {
    /// The agent: shell
    #[arg(value_name = "AGENT")]
    pub(crate) agent: String,
    /// The workspace (the current folder by default), then further folders; each with :ro to only read, or :rw, which is so without it.
    /// Where a folder is itself called data:ro, write data/:ro for data or data:ro/ for that one
    #[arg(value_name = "FOLDER[:ro|:rw]")]
    pub(crate) folders: Vec<OsString>,
    /// Call the sandbox this instead of AGENT-FOLDER
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// kvm or soft, instead of the better one that works here
    #[arg(long, value_name = "ENGINE")]
    pub(crate) engine: Option<String>,
    /// vCPUs of a new sandbox, 1 to all of the host (all by default)
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<u32>,
    /// Memory of a new sandbox, 256m to all of the host's (half of it, at most 8g, by default)
    #[arg(long, short = 'm', value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// Disk of a new sandbox, 1g to 16t, taken only as it is filled (64g by default)
    #[arg(long, value_name = "SIZE")]
    pub(crate) disk: Option<String>,
    /// Share the folder even if it is the whole home or the whole host
    #[arg(long)]
    pub(crate) force: bool,
    /// Publish a port: [IP:]HOST:GUEST[/udp]
    #[arg(long, short = 'p', value_name = "PORTS")]
    pub(crate) publish: Vec<OsString>,
    /// none for a new sandbox without any network
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network: Option<String>,
    /// A file with the network rules of a kit, for a new sandbox
    #[arg(long, value_name = "FILE")]
    pub(crate) kit: Vec<OsString>,
}

/// What Docker wants to be told, and what is so here anyway: a session of an agent has the input, and a terminal where there is one.
#[derive(Debug, Args)]
struct Habit {
    #[arg(short = 'i', long = "interactive", hide = true)]
    _interactive: bool,
    #[arg(short = 't', long = "tty", hide = true)]
    _tty: bool,
}

#[derive(Debug, Args)]
#[command(before_help = RUN_EXAMPLES)]
pub(crate) struct RunOptions {
    #[command(flatten)]
    _habit: Habit,
    #[command(flatten)]
    pub(crate) new: NewOptions,
    /// Start it without a session, print its name, and let it run until viv stop
    #[arg(long, short = 'd')]
    pub(crate) detach: bool,
    /// Set a variable for the agent: NAME=VALUE, or NAME to pass the host's on
    #[arg(long, short = 'e', value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Ask on this terminal about hosts that no rule speaks of, instead of refusing them
    #[arg(long, conflicts_with_all = ["observe", "detach"])]
    pub(crate) ask: bool,
    /// Let through what is not denied, and print at the end which rules the work would need
    #[arg(long, conflicts_with = "detach")]
    pub(crate) observe: bool,
    #[command(flatten)]
    pub(crate) ssh: SshOptions,
    /// The agent's own arguments
    #[arg(last = true, value_name = "ARGS")]
    pub(crate) arguments: Vec<OsString>,
}

/// The use of the host's SSH agent, as long as the session goes on.
#[derive(Debug, Args)]
pub(crate) struct SshOptions {
    /// Let the sandbox use your SSH agent to log in at these hosts, whose keys are in known_hosts; keys stay here
    #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',')]
    pub(crate) ssh_agent: Vec<String>,
    /// Let it have signatures in these namespaces made by your SSH agent; git is that of commits and tags
    #[arg(long, value_name = "NAMESPACE", value_delimiter = ',')]
    pub(crate) ssh_sign: Vec<String>,
}

#[derive(Debug, Args)]
#[command(before_help = ATTACH_EXAMPLES)]
pub(crate) struct AttachOptions {
    #[command(flatten)]
    _habit: Habit,
    /// Set a variable for the agent: NAME=VALUE, or NAME to pass the host's on
    #[arg(long, short = 'e', value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// The sandbox's name or id, or its beginning
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) ssh: SshOptions,
    /// The agent's own arguments
    #[arg(last = true, value_name = "ARGS")]
    pub(crate) arguments: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(before_help = INSPECT_EXAMPLES)]
pub(crate) struct InspectOptions {
    /// As without it: what is shown is JSON anyway
    #[arg(long)]
    pub(crate) json: bool,
    /// Names or ids, or their beginnings
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
#[command(before_help = LOGS_EXAMPLES)]
pub(crate) struct LogsOptions {
    /// Go on with what comes, until the sandbox stops
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) tail: Option<usize>,
    /// Only what came since: 10m, 2h, or a time like 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// The sandbox's name or id, or its beginning
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Only these: console, agent, dockerd (named, with what it says in the course of its work), vmm, gateway, shim
    #[arg(value_name = "LOG")]
    pub(crate) sources: Vec<String>,
}

#[derive(Debug, Args)]
#[command(before_help = CP_EXAMPLES)]
pub(crate) struct CpOptions {
    /// Who reads or writes in the sandbox: NAME or UID (agent by default)
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// PATH, or NAME:PATH in a sandbox (from its workspace on if it is relative), or - for a tar archive
    #[arg(value_name = "FROM")]
    pub(crate) from: OsString,
    /// As FROM; what is copied into a folder that is there keeps its name
    #[arg(value_name = "TO")]
    pub(crate) to: OsString,
}

#[derive(Debug, Args)]
#[command(before_help = PRUNE_EXAMPLES)]
pub(crate) struct PruneOptions {
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Only say what would be deleted
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Only images and downloads; no sandbox
    #[arg(long)]
    pub(crate) images: bool,
}

#[derive(Debug, Args)]
#[command(before_help = EXEC_EXAMPLES)]
pub(crate) struct ExecOptions {
    /// Pass the standard input on
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// NAME or UID, with :GROUP or :GID if need be (agent by default)
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Folder to run in (the workspace by default)
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<OsString>,
    /// Set a variable: NAME=VALUE, or NAME to pass the host's on
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// The sandbox's name or id, or its beginning
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(before_help = LS_EXAMPLES)]
pub(crate) struct LsOptions {
    /// One JSON object a line; with -q one array of names
    #[arg(long)]
    pub(crate) json: bool,
    /// Names only
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
#[command(before_help = START_EXAMPLES)]
pub(crate) struct StartOptions {
    /// Let it run until viv stop, also without sessions
    #[arg(long, short = 'd')]
    pub(crate) detach: bool,
    /// Names or ids, or their beginnings
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
#[command(before_help = STOP_EXAMPLES)]
pub(crate) struct StopOptions {
    /// Names or ids, or their beginnings
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
#[command(before_help = RM_EXAMPLES)]
pub(crate) struct RmOptions {
    /// Do not ask; stop what runs
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Names or ids; their beginnings do without -f
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
#[command(before_help = CHECK_EXAMPLES)]
pub(crate) struct CheckOptions {
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// The disk's files only, without the file system on it, which takes a machine of its own
    #[arg(long)]
    pub(crate) quick: bool,
    /// The sandbox's name or id, or its beginning
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
#[command(before_help = DIAGNOSE_EXAMPLES)]
pub(crate) struct DiagnoseOptions {
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn what_follows_the_dashes_is_the_agents() {
        let Command::Run(run) =
            parse("viv run shell . /data:ro --name x -- -c date --version").unwrap().command
        else {
            panic!()
        };
        assert_eq!(run.new.folders, [".", "/data:ro"]);
        assert_eq!(run.arguments, ["-c", "date", "--version"]);
        assert_eq!(run.new.name.as_deref(), Some("x"));
    }

    #[test]
    fn the_commands_own_flags_are_not_ours() {
        let Command::Exec(exec) = parse("viv exec -it -e A=1 -w /x box ls -l --help").unwrap().command else {
            panic!()
        };
        assert!(exec.interactive && exec.tty);
        assert_eq!(exec.command, ["ls", "-l", "--help"]);
        assert_eq!(exec.name, "box");
        assert!(parse("viv exec box").is_err());
    }

    #[test]
    fn habits_of_docker_that_change_nothing_are_taken() {
        for line in
            ["viv run -it shell", "viv attach -i -t box", "viv run --interactive --tty shell . -- -c true"]
        {
            assert!(parse(line).is_ok(), "{line}");
        }
        assert!(parse("viv inspect --json box").is_ok());
    }

    #[test]
    fn help_begins_with_two_examples() {
        for verb in [
            "",
            "run",
            "create",
            "attach",
            "exec",
            "ls",
            "start",
            "stop",
            "rm",
            "logs",
            "cp",
            "prune",
            "inspect",
            "check",
            "diagnose",
            "policy",
            "policy init",
            "policy allow",
            "policy deny",
            "policy rm",
            "policy ls",
            "policy check",
            "policy log",
            "policy approve",
            "policy inspect",
            "policy reset",
            "ports",
            "secret",
            "secret set",
            "secret set-custom",
            "secret ls",
            "secret rm",
            "secret import",
        ] {
            let line = ["viv"].into_iter().chain(verb.split_whitespace()).chain(["--help"]);
            let help = Cli::try_parse_from(line).unwrap_err().to_string();
            let mut lines = help.lines();
            assert_eq!(lines.next(), Some("Examples:"), "{verb}");
            assert!(lines.by_ref().take(2).all(|line| line.starts_with("  viv ")), "{verb}");
        }
    }
}
