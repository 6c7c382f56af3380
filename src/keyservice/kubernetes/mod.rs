//! The API server as the authority: whose a token is ([`Accounts`]), and which node holds a volume ([`Holders`]).
//!
//! Both ask it as seldom as they may, and refuse nothing without having asked it just now. When it is away nobody is
//! let in whose token it has not confirmed within the configured time.

mod accounts;
mod holders;
mod index;

use std::sync::Arc;

use kube::Client;

use crate::{
    exec::Deadline,
    key::service::KeyInfo,
    keyservice::{
        auth::{Caller, Unheld},
        bearer::{Settings, Unproven},
    },
};

pub use accounts::Accounts;
pub use holders::Holders;
pub use index::{Attachments, Drivers, Index, Volumes};

/// Who says who a caller is and what it holds.
#[derive(Debug)]
pub struct Authority {
    accounts: Accounts,
    holders: Holders,
}

impl Authority {
    /// The API server of a client, and its watches: they go on for as long as the future is polled. The client gives up
    /// what is silent for longer than [`Settings::silence_time`].
    pub fn watch(client: Client, settings: Settings) -> (Arc<Self>, impl Future<Output = ()> + Send + 'static) {
        let (holders, watches) = Holders::watch(client.clone(), &settings.drivers, settings.watch_time());
        let accounts = Accounts::new(client, settings);
        (Arc::new(Self { accounts, holders }), watches)
    }

    /// Who a token's bearer is, if that is known without asking the API server.
    pub async fn known(&self, token: &str) -> Option<Caller> {
        self.accounts.known(token).await
    }

    /// Who a token's bearer is.
    ///
    /// # Errors
    /// He is nobody whom we let in, or the API server cannot be asked.
    pub async fn caller(&self, token: &str, deadline: Deadline) -> Result<Caller, Unproven> {
        self.accounts.caller(token, deadline).await
    }

    /// Refuses a node that does not hold a volume.
    ///
    /// # Errors
    /// It does not, or the API server cannot be asked.
    pub async fn expect_held(&self, node: &str, info: &KeyInfo, deadline: Deadline) -> Result<(), Unheld> {
        self.holders.expect_held(node, info, deadline).await
    }

    /// Waits until the watches know of everything that there is.
    pub async fn synced(&self) {
        self.holders.synced().await;
    }
}
