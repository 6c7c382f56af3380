//! Why a new volume does not get what is asked for it: a policy forbids it, or cannot be applied.

use crate::key::service::KeyFailure;

/// Why a class does not get what it asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyFault {
    /// Another provider than the rule's.
    #[error("policy {rule} gives provider {given}, and provider {asked} is asked for; {remedy}")]
    OtherProvider {
        /// The rule.
        rule: String,
        /// What it gives.
        given: String,
        /// What is asked for.
        asked: String,
        /// What can be done.
        remedy: &'static str,
    },
    /// Another KEK than the rule's.
    #[error("policy {rule} gives key {given}, and key {asked} is asked for; {remedy}")]
    OtherKey {
        /// The rule.
        rule: String,
        /// What it gives.
        given: String,
        /// What is asked for.
        asked: String,
        /// What can be done.
        remedy: &'static str,
    },
    /// Another value than the rule's for a key of the context.
    #[error("policy {rule} gives context {key}={given}, and {key}={asked} is asked for; {remedy}")]
    OtherContext {
        /// The rule.
        rule: String,
        /// The key.
        key: String,
        /// What the rule gives.
        given: String,
        /// What is asked for.
        asked: String,
        /// What can be done.
        remedy: &'static str,
    },
    /// Whether a rule matches hangs on what is not known of the claim.
    #[error(
        "policy {rule} goes by the claim's {what}, which is not known; run external-provisioner with \
         --extra-create-metadata, which passes it on"
    )]
    NotKnown {
        /// The rule.
        rule: String,
        /// What is not known.
        what: &'static str,
    },
    /// A key of the context that is ours.
    #[error("context key {0:?} is Coffer's own; name it otherwise")]
    Reserved(String),
}

impl From<PolicyFault> for KeyFailure {
    fn from(fault: PolicyFault) -> Self {
        let text = fault.to_string();
        match fault {
            PolicyFault::OtherProvider { .. }
            | PolicyFault::OtherKey { .. }
            | PolicyFault::OtherContext { .. }
            | PolicyFault::NotKnown { .. } => Self::Forbidden(text),
            // The request is wrong, whatever the policies say.
            PolicyFault::Reserved(_) => Self::Invalid(text),
        }
    }
}
