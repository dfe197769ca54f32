//! The command line of `viv policy` and `viv ports`.

use std::ffi::OsString;

use clap::{Args, Subcommand};

const POLICY_EXAMPLES: &str = "\
Examples:
  viv policy allow docs.example.com    let all sandboxes reach one host more
  viv policy log shell-api             what one of them reached, and what it was refused";

const INIT_EXAMPLES: &str = "\
Examples:
  viv policy init balanced             registries, source hosts and documentation, as without any init
  viv policy init deny-all             nothing but what a rule allows";

const ALLOW_EXAMPLES: &str = "\
Examples:
  viv policy allow example.com,*.example.org:443             all sandboxes, two hosts
  viv policy allow --sandbox shell-api --method GET,HEAD --path '/docs/**' example.com";

const DENY_EXAMPLES: &str = "\
Examples:
  viv policy deny '**.example.com' --except jira.example.com   all of a domain but one host
  viv policy deny --method POST --path '/**' example.com       look, but send nothing";

const RM_EXAMPLES: &str = "\
Examples:
  viv policy rm example.com            take back what was said of it for all sandboxes
  viv policy rm --sandbox shell-api --id allow:example.com:443";

const LS_EXAMPLES: &str = "\
Examples:
  viv policy ls                        the rules that hold for all sandboxes
  viv policy ls shell-api --json       those of one of them, one object a line, the preset first";

const CHECK_EXAMPLES: &str = "\
Examples:
  viv policy check example.com         may it be reached, and which rule says so
  viv policy check --sandbox shell-api POST api.example.com/items";

const LOG_EXAMPLES: &str = "\
Examples:
  viv policy log shell-api --totals    what it reached and what it was refused, summed up
  viv policy log -f --type refused     what is refused from now on, in all sandboxes";

const APPROVE_EXAMPLES: &str = "\
Examples:
  viv policy approve                   kits whose rules wait for it
  viv policy approve web --sandbox shell-api";

const INSPECT_EXAMPLES: &str = "\
Examples:
  viv policy inspect balanced          all that a preset allows, with the reasons
  viv policy inspect --sandbox shell-api sandbox/allow:example.com:443";

const RESET_EXAMPLES: &str = "\
Examples:
  viv policy reset                     asks, then begins anew with balanced and no rules
  viv policy reset -f --sandbox shell-api";

const PORTS_EXAMPLES: &str = "\
Examples:
  viv ports shell-api                  what it publishes
  viv ports shell-api --publish 8080:80 --unpublish 9090:90";

#[derive(Debug, Args)]
#[command(before_help = POLICY_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct PolicyOptions {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: PolicyCommand,
}

/// The verbs of `viv policy`.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Choose what holds where no rule of yours speaks: allow-all, balanced or deny-all
    Init(InitOptions),
    /// Allow hosts, networks, or requests to them; at once, in running sandboxes too
    Allow(AllowOptions),
    /// Deny them; a denial beats every permission
    Deny(DenyOptions),
    /// Take rules back; ends with 125 when one of them is not there, after the others
    Rm(RuleRmOptions),
    /// List the rules
    Ls(RuleLsOptions),
    /// Say whether something is allowed, and which rule decides; ends with 1 when it is not
    Check(PolicyCheckOptions),
    /// Show what was decided
    Log(PolicyLogOptions),
    /// Let a kit's rules hold under deny-all
    Approve(ApproveOptions),
    /// Show a preset or a rule in full
    Inspect(RuleInspectOptions),
    /// Delete all rules and approvals
    Reset(ResetOptions),
}

#[derive(Debug, Args)]
#[command(before_help = INIT_EXAMPLES)]
pub(crate) struct InitOptions {
    /// Only for this sandbox
    #[arg(long, value_name = "NAME")]
    pub(crate) sandbox: Option<String>,
    /// allow-all, balanced or deny-all
    #[arg(value_name = "PRESET")]
    pub(crate) preset: String,
}

/// What a rule is about.
#[derive(Debug, Args)]
pub(crate) struct RuleOptions {
    /// Only in this sandbox
    #[arg(long, value_name = "NAME")]
    pub(crate) sandbox: Option<String>,
    /// tcp, udp or tcp,udp
    #[arg(long, value_name = "PROTOCOL")]
    pub(crate) protocol: Option<String>,
    /// Only HTTP requests with these methods, or ANY
    #[arg(long, value_name = "METHODS")]
    pub(crate) method: Option<String>,
    /// Only HTTP requests to paths like '/docs/**'
    #[arg(long, value_name = "PATH")]
    pub(crate) path: Option<String>,
    /// HOST[:PORTS], *.HOST, **.HOST, NETWORK[:PORTS] or localhost:PORT; several with commas
    #[arg(required = true, value_name = "RESOURCE")]
    pub(crate) resources: Vec<String>,
}

#[derive(Debug, Args)]
#[command(before_help = ALLOW_EXAMPLES)]
pub(crate) struct AllowOptions {
    #[command(flatten)]
    pub(crate) rule: RuleOptions,
    /// Why, for who reads the list later
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Args)]
#[command(before_help = DENY_EXAMPLES)]
pub(crate) struct DenyOptions {
    #[command(flatten)]
    pub(crate) rule: RuleOptions,
    /// Not these: they switch off this denial and no other
    #[arg(long, value_name = "HOST")]
    pub(crate) except: Vec<String>,
    /// Why, for who reads the list later
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Args)]
#[command(before_help = RM_EXAMPLES)]
pub(crate) struct RuleRmOptions {
    /// Those of this sandbox
    #[arg(long, value_name = "NAME")]
    pub(crate) sandbox: Option<String>,
    /// The one with this id, as viv policy ls shows it
    #[arg(long, value_name = "ID")]
    pub(crate) id: Vec<String>,
    /// Only rules on these methods
    #[arg(long, value_name = "METHODS")]
    pub(crate) method: Option<String>,
    /// Only rules on this path
    #[arg(long, value_name = "PATH")]
    pub(crate) path: Option<String>,
    /// As in viv policy allow; several with commas
    #[arg(long = "resource", value_name = "RESOURCE")]
    pub(crate) named: Vec<String>,
    /// As in viv policy allow; several with commas
    #[arg(value_name = "RESOURCE")]
    pub(crate) resources: Vec<String>,
}

#[derive(Debug, Args)]
#[command(before_help = LS_EXAMPLES)]
pub(crate) struct RuleLsOptions {
    /// One JSON object a line: the preset in force, then the rules
    #[arg(long)]
    pub(crate) json: bool,
    /// The rules of the preset, too
    #[arg(long, short = 'a')]
    pub(crate) all: bool,
    /// Only these: allow or deny
    #[arg(long, value_name = "DECISION")]
    pub(crate) decision: Option<String>,
    /// Only these: floor, global, kit, sandbox or once
    #[arg(long, value_name = "LAYER")]
    pub(crate) layer: Option<String>,
    /// Only these: network or http
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) kind: Option<String>,
    /// All that holds for this sandbox
    #[arg(value_name = "NAME")]
    pub(crate) sandbox: Option<String>,
}

#[derive(Debug, Args)]
#[command(before_help = CHECK_EXAMPLES)]
pub(crate) struct PolicyCheckOptions {
    /// In this sandbox
    #[arg(long, value_name = "NAME")]
    pub(crate) sandbox: Option<String>,
    /// tcp (by default) or udp
    #[arg(long, value_name = "PROTOCOL")]
    pub(crate) protocol: Option<String>,
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// [METHOD] HOST[:PORT][/PATH], or a URL; port 443 unless it is named
    #[arg(required = true, value_name = "TARGET")]
    pub(crate) target: Vec<String>,
}

#[derive(Debug, Args)]
#[command(before_help = LOG_EXAMPLES)]
pub(crate) struct PolicyLogOptions {
    /// Go on with what comes
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// One JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Only the last N (100 by default; 0 for all)
    #[arg(long, short = 'n', value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Only these: allowed, refused, failed, observed, asked, dns, connection, request, exfiltration, ssh-agent
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) kind: Vec<String>,
    /// Sums for each host instead of single lines
    #[arg(long, conflicts_with = "follow")]
    pub(crate) totals: bool,
    /// Names, or their beginnings; all sandboxes without
    #[arg(value_name = "NAME")]
    pub(crate) sandboxes: Vec<String>,
}

#[derive(Debug, Args)]
#[command(before_help = APPROVE_EXAMPLES)]
pub(crate) struct ApproveOptions {
    /// As this sandbox has it
    #[arg(long, value_name = "NAME")]
    pub(crate) sandbox: Option<String>,
    /// Take the approval back
    #[arg(long)]
    pub(crate) revoke: bool,
    /// The kit's name; without one, what waits is listed
    #[arg(value_name = "KIT")]
    pub(crate) kit: Option<String>,
}

#[derive(Debug, Args)]
#[command(before_help = INSPECT_EXAMPLES)]
pub(crate) struct RuleInspectOptions {
    /// Of this sandbox
    #[arg(long, value_name = "NAME")]
    pub(crate) sandbox: Option<String>,
    /// A preset, or a rule's id or its beginning
    #[arg(value_name = "PRESET|RULE")]
    pub(crate) what: String,
}

#[derive(Debug, Args)]
#[command(before_help = RESET_EXAMPLES)]
pub(crate) struct ResetOptions {
    /// Do not ask
    #[arg(long, short)]
    pub(crate) force: bool,
    /// Only the rules of this sandbox
    #[arg(long, value_name = "NAME")]
    pub(crate) sandbox: Option<String>,
}

#[derive(Debug, Args)]
#[command(before_help = PORTS_EXAMPLES)]
pub(crate) struct PortsOptions {
    /// Publish [IP:]HOST:GUEST[/udp]; GUEST alone takes any free port of the host, 127.0.0.1 is the address
    #[arg(long, short = 'p', value_name = "PORTS")]
    pub(crate) publish: Vec<OsString>,
    /// Publish it no longer; written as it was published
    #[arg(long, value_name = "PORTS")]
    pub(crate) unpublish: Vec<OsString>,
    /// One JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// The sandbox's name, or its beginning
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}
