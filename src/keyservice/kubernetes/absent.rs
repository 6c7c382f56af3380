//! What stands in for the API server in a build without Kubernetes: there is none, so nobody proves himself by a token.

use crate::{
    exec::Deadline,
    key::service::KeyInfo,
    keyservice::{
        auth::{Caller, Unheld},
        bearer::Unproven,
    },
};

/// Who says who a caller is and what it holds: nobody.
#[derive(Debug)]
pub enum Authority {}

impl Authority {
    /// Who a token's bearer is, if that is known without asking.
    pub async fn known(&self, _token: &str) -> Option<Caller> {
        match *self {}
    }

    /// Who a token's bearer is.
    ///
    /// # Errors
    /// None: it is never asked.
    pub async fn caller(&self, _token: &str, _deadline: Deadline) -> Result<Caller, Unproven> {
        match *self {}
    }

    /// Refuses a node that does not hold a volume.
    ///
    /// # Errors
    /// None: it is never asked.
    pub async fn expect_held(&self, _node: &str, _info: &KeyInfo, _deadline: Deadline) -> Result<(), Unheld> {
        match *self {}
    }
}
