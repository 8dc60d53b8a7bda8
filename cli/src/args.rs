//! What can be typed. The one definition behind parsing, help, man pages and completions; it gives no meaning.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args as ClapArgs, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Who is really talking to whom, through every NAT in between.
///
/// Asks any federator; it answers for the whole mesh. The answer goes to stdout, everything else to stderr.
#[derive(Debug, Parser)]
#[command(
    name = "weft",
    version,
    disable_help_subcommand = true,
    propagate_version = false,
    max_term_width = 100,
    subcommand_help_heading = "Verbs",
    after_help = "Topics: weft help exit-codes | environment | formats | filter | health | objectives | errors | schemas | man",
    after_long_help = "Examples:\n  weft connections --from web --since 15m\n  weft report hairpins --since 24h --top 10\n  \
                       weft connections --where 'server.port = 5432 and path.class = cross-cloud' --json\n  weft explain \
                       7f3a9c\n\nTopics: weft help exit-codes | environment | formats | filter | health | objectives | errors | schemas | man"
)]
pub struct Args {
    /// Options of every verb.
    #[command(flatten)]
    pub global: Global,
    /// The verb.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Of a command line that does not parse: whether its verb is `health`, as far as can be told.
pub(crate) fn means_health(typed: Vec<OsString>) -> bool {
    let understood = Args::command()
        .ignore_errors(true)
        .try_get_matches_from(&typed);
    match understood.as_ref().map(|matches| matches.subcommand_name()) {
        Ok(Some(verb)) => verb == "health",
        // The mistake is before the verb.
        _ => typed.iter().any(|word| word == "health"),
    }
}

/// Options of every verb.
#[derive(Clone, Debug, Default, ClapArgs)]
#[command(next_help_heading = "Common options")]
pub struct Global {
    /// Federator to ask [env: WEFT_FEDERATOR]
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub federator: Option<String>,
    /// Directory with ca.pem, cert.pem and key.pem of an operator [env: WEFT_IDENTITY]
    #[arg(long, global = true, value_name = "DIR")]
    pub identity: Option<PathBuf>,
    /// How the answer is written
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// The same as --format json
    #[arg(long, global = true, conflicts_with = "format")]
    pub json: bool,
    /// When to use colour
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "WHEN",
        default_value_t,
        hide_default_value = true
    )]
    pub color: When,
    /// No summaries and hints on stderr; errors and gaps in the answer stay
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Exit with 3 when the answer rests on less than this part (weft help formats)
    #[arg(long, global = true, value_name = "PERCENT")]
    pub min_complete: Option<f64>,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns; fits a terminal, whole in a pipe
    Table,
    /// One object: schema, window, completeness, rows
    Json,
    /// One object a line: the rows alone
    Ndjson,
    /// Comma-separated, one header line
    Csv,
    /// A Markdown table
    Md,
    /// weft health: a Nagios plugin's line with performance data
    Nagios,
    /// weft health: the text that Prometheus and node_exporter read
    Prometheus,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// On a terminal, unless NO_COLOR or TERM=dumb
    #[default]
    Auto,
    /// Also in pipes
    Always,
    /// Not at all
    Never,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List connections, newest first
    Connections(Connections),
    /// Say in words how a connection was seen, matched and classified
    Explain(Explain),
    /// Add up what flows between workloads
    Report(Report),
    /// Query with read-only SQL
    Sql(Sql),
    /// Say who asks for which names, and what comes of it
    Dns(Dns),
    /// Check federators and agents; exits like a Nagios plugin
    Health(Health),
    /// List federators; exits with 1 when one has a problem
    Federators(Federators),
    /// Relieve a federator of its agents and offers, or no longer
    Drain(Drain),
    /// Make tokens with which nodes join
    #[command(subcommand)]
    Token(Token),
    /// Make certificates, and revoke them
    #[command(subcommand)]
    Pki(Pki),
    /// Print a completion script for a shell
    Completion {
        /// Which shell
        shell: Shell,
    },
    /// Explain a verb, a topic or an error code
    Help {
        /// A verb, exit-codes, environment, formats, filter, health, objectives, errors, E-…, schemas, man
        #[arg(value_name = "TOPIC", num_args = 0..=2)]
        topic: Vec<String>,
    },
}

/// `weft connections`
#[derive(Clone, Debug, ClapArgs)]
pub struct Connections {
    /// When.
    #[command(flatten)]
    pub window: Window,
    /// Between whom.
    #[command(flatten)]
    pub ends: Ends,
    /// At most so many rows
    #[arg(long, visible_alias = "top", value_name = "N", default_value_t = 50)]
    pub limit: u32,
    /// Follow what goes on through proxies: > ID with which connection, < ID with which it came
    #[arg(long)]
    pub chains: bool,
    /// Whom to ask, and how often.
    #[command(flatten)]
    pub asking: Asking,
}

/// `weft explain`
#[derive(Clone, Debug, ClapArgs)]
pub struct Explain {
    /// Id of a connection, or how it begins (4 digits or more)
    #[arg(value_name = "ID")]
    pub id: String,
}

/// `weft report`
#[derive(Clone, Debug, ClapArgs)]
pub struct Report {
    /// Which report
    #[arg(value_enum, value_name = "REPORT")]
    pub which: Which,
    /// When.
    #[command(flatten)]
    pub window: Window,
    /// Between whom.
    #[command(flatten)]
    pub ends: Ends,
    /// At most so many rows
    #[arg(long, visible_alias = "limit", value_name = "N", default_value_t = 20)]
    pub top: u32,
    /// What is largest first
    #[arg(long, value_enum, value_name = "ORDER", default_value_t)]
    pub by: By,
    /// Whom to ask, and how often.
    #[command(flatten)]
    pub asking: Asking,
}

/// The reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// Ends in different Kubernetes clusters
    CrossCluster,
    /// Ends in different clouds
    CrossCloud,
    /// Ends in different regions
    CrossRegion,
    /// Ends in different namespaces
    CrossNamespace,
    /// One end has no agent of ours
    NorthSouth,
    /// Both ends near each other, the path not
    Hairpins,
    /// Who depends on whom
    Dependencies,
}

/// Order of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// Payload both ways
    #[default]
    Bytes,
    /// Number of connections
    Connections,
}

/// `weft sql`
#[derive(Clone, Debug, ClapArgs)]
pub struct Sql {
    /// One SELECT over the tables connection, lookups and cluster_objects; - reads it from stdin
    #[arg(value_name = "SELECT")]
    pub statement: String,
    /// When.
    #[command(flatten)]
    pub window: Window,
    /// Between whom.
    #[command(flatten)]
    pub ends: Ends,
    /// At most so many rows
    #[arg(long, visible_alias = "top", value_name = "N", default_value_t = 1000)]
    pub limit: u32,
    /// Whom to ask, and how often.
    #[command(flatten)]
    pub asking: Asking,
}

/// `weft dns`
#[derive(Clone, Debug, ClapArgs)]
pub struct Dns {
    /// Which report
    #[arg(value_enum, value_name = "REPORT")]
    pub which: WhichDns,
    /// The name that explain is about; names below it count too
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// When.
    #[command(flatten)]
    pub window: Window,
    /// Who asked: a workload, agent, process:NAME, cloud:aws, …
    #[arg(long, value_name = "TERM", help_heading = "Scope (weft help filter)")]
    pub from: Option<String>,
    /// An expression over who asked, as client: client.namespace = shop
    #[arg(
        long = "where",
        value_name = "EXPR",
        help_heading = "Scope (weft help filter)"
    )]
    pub expression: Option<String>,
    /// At most so many rows
    #[arg(long, visible_alias = "limit", value_name = "N", default_value_t = 20)]
    pub top: u32,
    /// Whom to ask, and how often.
    #[command(flatten)]
    pub asking: Asking,
}

/// The reports on lookups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WhichDns {
    /// Who asks most
    Top,
    /// Which names are asked most, and by whom
    Hotspots,
    /// Domains outside, beside what is inside
    External,
    /// What failed, was not answered, or only tried the search path
    Failures,
    /// Names on a threat list, and who asked; exits with 1 when there are any
    Threats,
    /// All about one name
    Explain,
    /// Who asks by TLS or HTTPS, where names are not seen
    Bypass,
}

/// `weft health`
#[derive(Clone, Debug, ClapArgs)]
pub struct Health {
    /// Judge what happened within this time, at most 1d, in place of everything since the start: 15m, 1h
    #[arg(long, value_name = "DURATION")]
    pub since: Option<String>,
    /// Judge by the bounds in this file (weft help objectives)
    #[arg(long, value_name = "FILE")]
    pub objectives: Option<PathBuf>,
    /// Write to this file in place of stdout, whole or not at all
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Whom to ask, and how often.
    #[command(flatten)]
    pub asking: Asking,
}

/// `weft drain`
#[derive(Clone, Debug, ClapArgs)]
pub struct Drain {
    /// Which federator, by its name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// It takes agents and offers again
    #[arg(long)]
    pub undo: bool,
}

/// `weft federators`
#[derive(Clone, Debug, ClapArgs)]
pub struct Federators {
    /// Whom to ask, and how often.
    #[command(flatten)]
    pub asking: Asking,
}

/// When.
#[derive(Clone, Debug, Default, ClapArgs)]
#[command(next_help_heading = "Time")]
pub struct Window {
    /// Active since: 1h (the default), 15m, 7d ago, or a time
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Opened before
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Active at that moment
    #[arg(long, value_name = "TIME", conflicts_with_all = ["since", "until"])]
    pub at: Option<String>,
}

/// Between whom.
#[derive(Clone, Debug, Default, ClapArgs)]
#[command(next_help_heading = "Scope (weft help filter)")]
pub struct Ends {
    /// The client's end: a workload, agent, address, network, process:NAME, cloud:aws, …
    #[arg(long, value_name = "TERM")]
    pub from: Option<String>,
    /// The server's end
    #[arg(long, value_name = "TERM")]
    pub to: Option<String>,
    /// An expression over both ends: server.port = 5432 and not client.namespace ~ "kube-*"
    #[arg(long = "where", value_name = "EXPR")]
    pub expression: Option<String>,
}

/// Whom to ask, and how often.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct Asking {
    /// Only what the asked federator has itself, not the mesh
    #[arg(long)]
    pub local: bool,
    /// Ask again every 5s, or so often; redraws on a terminal, appends a JSON line in a pipe
    #[arg(long, value_name = "EVERY", num_args = 0..=1, require_equals = true, default_missing_value = "5s")]
    pub watch: Option<String>,
}

/// `weft token`
#[derive(Clone, Debug, Subcommand)]
pub enum Token {
    /// Make a token, as an admin, of a federator of the region; it is shown once
    Create(TokenCreate),
}

/// `weft token create`
#[derive(Clone, Debug, ClapArgs)]
pub struct TokenCreate {
    /// What the node will be
    #[arg(long, value_name = "ROLE", default_value = "agent", value_parser = ["agent"])]
    pub role: String,
    /// Its region
    #[arg(long, value_name = "REGION")]
    pub region: String,
    /// Its name; without it the node chooses one that is free
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// How long the token may wait: 10s to 7d
    #[arg(long, value_name = "DURATION", default_value = "30m")]
    pub ttl: String,
}

/// `weft pki revoke`
#[derive(Clone, Debug, ClapArgs)]
pub struct Revoke {
    /// Every certificate of this name: spiffe://DOMAIN/region/REGION/ROLE/NAME
    #[arg(long, value_name = "ID", conflicts_with_all = ["serial", "certificate"])]
    pub name: Option<String>,
    /// The certificate with this serial number, or the CA and all that it signed
    #[arg(long, value_name = "HEX", conflicts_with = "certificate")]
    pub serial: Option<String>,
    /// The first certificate of this file
    #[arg(long, value_name = "FILE")]
    pub certificate: Option<PathBuf>,
    /// Let it in again
    #[arg(long)]
    pub lift: bool,
}

/// `weft pki`
#[derive(Clone, Debug, Subcommand)]
pub enum Pki {
    /// Make a certificate authority: ca.pem and ca-key.pem
    Init {
        /// Directory to make it in
        #[arg(long, value_name = "DIR", default_value = "weft-ca")]
        dir: PathBuf,
        /// Trust domain, as in spiffe://DOMAIN/…
        #[arg(long, value_name = "DOMAIN")]
        domain: String,
        /// Days of validity
        #[arg(long, value_name = "DAYS", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
    },
    /// Issue a certificate: ca.pem, cert.pem and key.pem; the key is never printed
    Issue {
        /// Directory of the certificate authority
        #[arg(long, value_name = "DIR", default_value = "weft-ca")]
        ca: PathBuf,
        /// Directory to write to
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// What its holder may do
        #[arg(long, value_enum, value_name = "ROLE")]
        role: Role,
        /// Region
        #[arg(long, value_name = "REGION")]
        region: String,
        /// Name, unique in region and role
        #[arg(long, value_name = "NAME")]
        name: String,
        /// Days of validity
        #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
    },
    /// Make a CA that signs one region's agents, for its federator: ca.pem and ca-key.pem
    RegionCa {
        /// Directory of the certificate authority above it
        #[arg(long, value_name = "DIR", default_value = "weft-ca")]
        ca: PathBuf,
        /// Directory to write to
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Region
        #[arg(long, value_name = "REGION")]
        region: String,
        /// Days of validity
        #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
    },
    /// Shut a name or a certificate out, everywhere, as an admin
    Revoke(Revoke),
    /// List what is revoked
    Revoked,
}

/// What a certificate's holder may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Report its own host's connections
    Agent,
    /// Take agents, stitch, answer
    Federator,
    /// Ask
    Operator,
    /// Ask, make tokens, revoke
    Admin,
}
