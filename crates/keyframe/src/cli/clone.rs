//! `keyframe clone` and `keyframe template …`

use clap::{Args, Subcommand};

use super::remote::{LimitArgs, RemoteArgs, WaitArgs};
use super::spec::NicPolicyText;

#[derive(Args, Clone, Debug)]
pub(crate) struct VmCloneArgs {
    /// What to clone: a machine as it is now, or a snapshot
    #[arg(value_name = "VM[@SNAPSHOT]", required_unless_present = "template", conflicts_with = "template")]
    pub(crate) source: Option<String>,
    /// Clone this template
    #[arg(long)]
    pub(crate) template: Option<String>,
    /// Name of the new machine; an n in braces stands for 1, 2, 3, …
    #[arg(long)]
    pub(crate) name: String,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) count: u32,
    /// What the n in braces starts with
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) first: u32,
    /// For people
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) description: String,
    /// With the memory: the clones go on where the source was (a fork)
    #[arg(long, conflicts_with = "template")]
    pub(crate) memory: bool,
    /// Network interfaces: keep, disconnect, vlan=ID or isolated[=NAME] [default: disconnect with memory, otherwise keep]
    #[arg(long, value_name = "WHAT")]
    pub(crate) nics: Option<NicPolicyText>,
    /// Start the clones, if they come without memory
    #[arg(long)]
    pub(crate) start: bool,
    /// With memory: do not have the guest agent set addresses, clock and host name
    #[arg(long)]
    pub(crate) keep_identity: bool,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct TemplateArgs {
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    #[command(subcommand)]
    pub(crate) command: TemplateCommand,
}

#[derive(Subcommand, Clone, Debug)]
pub(crate) enum TemplateCommand {
    /// Make a template of a stopped machine or of a snapshot; nothing happens to that
    Create {
        /// What it is made of
        #[arg(value_name = "VM[@SNAPSHOT]")]
        source: String,
        /// The template's name
        #[arg(long)]
        name: String,
        /// For people
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// List templates
    List {
        /// Only those with this word in name or description
        #[arg(long, value_name = "WORD")]
        search: Option<String>,
        #[command(flatten)]
        limit: LimitArgs,
    },
    /// Show one template
    Show {
        /// The template
        template: String,
    },
    /// Give a template another name
    Rename {
        /// The template
        template: String,
        /// The new name
        new: String,
    },
    /// Describe a template
    Describe {
        /// The template
        template: String,
        /// For people
        text: String,
    },
    /// Delete a template; machines made of it stay whole
    Delete {
        /// The template
        template: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
}
