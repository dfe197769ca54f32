//! `viv secret`.

use clap::{Args, Subcommand};

const SECRET_EXAMPLES: &str = "\
Examples:
  viv secret set github                asks for a token, for all sandboxes
  viv secret ls                        which secrets there are, and for which hosts";

const SET_EXAMPLES: &str = "\
Examples:
  viv secret set github                asks for the token and does not show it
  viv secret set openai --ref op://Work/OpenAI/key             from 1Password, when it is needed
  gh auth token | viv secret set github --sandbox shell-api    from a program, for one sandbox
  viv secret set aws --command 'aws configure export-credentials'
  viv secret set anthropic --oauth     sign in inside a sandbox; the tokens stay on the host";

const CUSTOM_EXAMPLES: &str = "\
Examples:
  viv secret set-custom jira --host jira.example --env JIRA_TOKEN
  viv secret set-custom mirror --host git.example:8443 --git-user ci --env MIRROR_TOKEN
  viv secret set-custom search --host api.example --query key --env SEARCH_KEY --method GET --path '/v1/**'
  viv secret set-custom proxy --host pkg.example --header 'x-token=Token {value}'   put in without a placeholder";

const LS_EXAMPLES: &str = "\
Examples:
  viv secret ls                        all secrets; never a value
  viv secret ls --json                 the same for programs, one object a line";

const RM_EXAMPLES: &str = "\
Examples:
  viv secret rm github                 asks, then deletes the value
  viv secret rm -f --sandbox shell-api github    the one of that sandbox only";

const IMPORT_EXAMPLES: &str = "\
Examples:
  viv secret import --dry-run          which variables of this shell are known services' secrets
  viv secret import github openai      keeps those two";

/// What `viv secret set --help` ends with.
fn services() -> String {
    let mut text = String::from("Services:\n");
    for service in vault::services::all() {
        let variables: Vec<&str> =
            service.env.keys().map(String::as_str).filter(|name| !name.contains('/')).collect();
        text.push_str(&format!("  {:<12} {:<22} {}\n", service.name, service.title, variables.join(" ")));
    }
    text
}

#[derive(Debug, Args)]
#[command(before_help = SECRET_EXAMPLES)]
pub(crate) struct SecretOptions {
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: SecretVerb,
}

/// What can be done with secrets.
#[derive(Debug, Subcommand)]
pub(crate) enum SecretVerb {
    /// Put in a service's secret, or replace it: sandboxes use it and never see it
    Set(SetOptions),
    /// Put in a secret for hosts of your own
    SetCustom(Box<SetCustomOptions>),
    /// List secrets, without their values
    #[command(visible_alias = "list")]
    Ls(SecretLsOptions),
    /// Delete secrets
    Rm(SecretRmOptions),
    /// Put in what this shell's variables have
    Import(ImportOptions),
}

/// Where a value comes from. Without any of these it is asked for, or read from the standard input.
#[derive(Debug, Args, Default)]
pub(crate) struct SourceOptions {
    /// Read it from this variable of the host whenever a sandbox starts
    #[arg(long, value_name = "VAR", group = "source")]
    pub(crate) from_env: Option<String>,
    /// op://VAULT/ITEM/FIELD, arn:aws:secretsmanager:…[#FIELD] or vault:PATH#FIELD, by op, aws or vault on this host
    #[arg(long = "ref", value_name = "REFERENCE", group = "source")]
    pub(crate) reference: Option<String>,
    /// What this command of the host's shell prints
    #[arg(long, value_name = "COMMAND", group = "source")]
    pub(crate) command: Option<String>,
    /// How long a value of --ref or --command is used: 30m, 8h, or on-demand (55m by default)
    #[arg(long, value_name = "TIME")]
    pub(crate) refresh: Option<String>,
    /// Do not try --from-env, --ref or --command now
    #[arg(long)]
    pub(crate) no_verify: bool,
    /// keychain, passphrase or key-file, instead of the best that there is
    #[arg(long, value_name = "PLACE")]
    pub(crate) store: Option<String>,
    /// Only for this sandbox; it wins over the one for all
    #[arg(long, value_name = "NAME")]
    pub(crate) sandbox: Option<String>,
    /// Let other credentials, which the guest has of its own, pass to the same hosts
    #[arg(long)]
    pub(crate) allow_other: bool,
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(before_help = SET_EXAMPLES, after_help = services())]
pub(crate) struct SetOptions {
    /// The service
    #[arg(value_name = "SERVICE")]
    pub(crate) service: String,
    /// Sign in inside a sandbox instead: its tokens stay on the host
    #[arg(long, group = "source")]
    pub(crate) oauth: bool,
    #[command(flatten)]
    pub(crate) source: SourceOptions,
}

#[derive(Debug, Args)]
#[command(before_help = CUSTOM_EXAMPLES)]
pub(crate) struct SetCustomOptions {
    /// What to call it
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Where it may go: api.example.com, *.example.com, api.example.com:8443
    #[arg(long, required = true, value_delimiter = ',', value_name = "HOST")]
    pub(crate) host: Vec<String>,
    /// The guest's variable that has the placeholder; without one the value is put in wherever --header, --query or --basic say
    #[arg(long, value_delimiter = ',', value_name = "VAR")]
    pub(crate) env: Vec<String>,
    /// Only in this header, with {value} where the value stands if not alone: 'authorization=Bearer {value}'
    #[arg(long, value_name = "NAME[=FORMAT]")]
    pub(crate) header: Vec<String>,
    /// Only in this parameter of the query
    #[arg(long, value_name = "NAME")]
    pub(crate) query: Vec<String>,
    /// Only in Basic authentication, with this user where it is put in without a placeholder
    #[arg(long, value_name = "USER", num_args = 0..=1, default_missing_value = "")]
    pub(crate) basic: Option<String>,
    /// As git's password for this user at the host
    #[arg(long, value_name = "USER")]
    pub(crate) git_user: Option<String>,
    /// Only with these methods
    #[arg(long, value_delimiter = ',', value_name = "METHOD")]
    pub(crate) method: Vec<String>,
    /// Only with these paths: /api/** for all below
    #[arg(long, value_delimiter = ',', value_name = "PATH")]
    pub(crate) path: Vec<String>,
    /// What the guest gets instead, with {rand} or {alnum:40} for what is random
    #[arg(long, value_name = "TEXT")]
    pub(crate) placeholder: Option<String>,
    #[command(flatten)]
    pub(crate) source: SourceOptions,
}

#[derive(Debug, Args)]
#[command(before_help = LS_EXAMPLES)]
pub(crate) struct SecretLsOptions {
    /// Only what this sandbox has
    #[arg(long, value_name = "NAME")]
    pub(crate) sandbox: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(before_help = RM_EXAMPLES)]
pub(crate) struct SecretRmOptions {
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Only the one of this sandbox
    #[arg(long, value_name = "NAME")]
    pub(crate) sandbox: Option<String>,
    /// Names, as viv secret ls has them
    #[arg(required = true, value_name = "SECRET")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
#[command(before_help = IMPORT_EXAMPLES)]
pub(crate) struct ImportOptions {
    /// All services that variables are set for
    #[arg(long, conflicts_with = "services")]
    pub(crate) all: bool,
    /// Only say what would be put in
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Replace what is there
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Only for this sandbox
    #[arg(long, value_name = "NAME")]
    pub(crate) sandbox: Option<String>,
    /// keychain, passphrase or key-file, instead of the best that there is
    #[arg(long, value_name = "PLACE")]
    pub(crate) store: Option<String>,
    /// The services
    #[arg(value_name = "SERVICE")]
    pub(crate) services: Vec<String>,
}
