//! The roles in which a provider's KEKs are reached: a policy names one for tenants whose KEK lies in an account of their
//! own.
//!
//! Each role has a client of its own, with its own cache and breaker, so that a tenant who takes a role away, or whose KMS
//! is throttled, is away alone. It is opened when a volume first needs it.
//!
//! A record holds the whole role, so that it opens when no policy names the role any more. What a policy says now of the
//! same ARN goes before what the record says: the role's owner may ask for another external id than at that time.

use std::{collections::HashMap, fmt, sync::Arc};

use futures::future::BoxFuture;
use tokio::{sync::Mutex, time::Instant};

use crate::key::{access::SettingsFault, kms::Kms, record::AwsRole};

/// The most roles that are open at once. Whoever can write records can name any number.
const MOST: usize = 256;

type Open = dyn Fn(AwsRole) -> BoxFuture<'static, Result<Arc<dyn Kms>, SettingsFault>> + Send + Sync;

/// A provider's roles.
pub struct Roles {
    /// As policies name them now.
    known: Vec<AwsRole>,
    /// None where the provider's type knows no roles.
    open: Option<Box<Open>>,
    opened: Mutex<HashMap<AwsRole, Opened>>,
}

struct Opened {
    kms: Arc<dyn Kms>,
    used: Instant,
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roles").field("known", &self.known).finish_non_exhaustive()
    }
}

impl Roles {
    /// Of a provider whose type knows no roles.
    #[must_use]
    pub fn none() -> Self {
        Self { known: Vec::new(), open: None, opened: Mutex::default() }
    }

    /// Of a provider that `open` opens in a role; `known` are those that policies name now.
    #[must_use]
    pub fn opened_by(
        known: Vec<AwsRole>,
        open: impl Fn(AwsRole) -> BoxFuture<'static, Result<Arc<dyn Kms>, SettingsFault>> + Send + Sync + 'static,
    ) -> Self {
        Self { known, open: Some(Box::new(open)), opened: Mutex::default() }
    }

    /// The KMS as a role reaches it. Nobody is asked anything yet.
    ///
    /// # Errors
    /// The provider's type knows no roles, or a file that leads to it cannot be read.
    pub async fn reach(&self, role: &AwsRole) -> Result<Arc<dyn Kms>, SettingsFault> {
        let Some(open) = &self.open else {
            let arn = &role.arn;
            return Err(SettingsFault(format!("it is reached in role {arn}, and the provider's type knows no roles")));
        };
        let role = self.as_known(role);
        // Held across the opening on purpose: two who come at once are to have one client. Opening asks nobody.
        let mut opened = self.opened.lock().await;
        if let Some(there) = opened.get_mut(role) {
            there.used = Instant::now();
            return Ok(there.kms.clone());
        }
        let kms = open(role.clone()).await?;
        if opened.len() >= MOST {
            let oldest = opened.iter().min_by_key(|(_, there)| there.used).map(|(role, _)| role.clone());
            if let Some(oldest) = oldest {
                opened.remove(&oldest);
            }
        }
        opened.insert(role.clone(), Opened { kms: kms.clone(), used: Instant::now() });
        Ok(kms)
    }

    fn as_known<'a>(&'a self, role: &'a AwsRole) -> &'a AwsRole {
        if self.known.contains(role) {
            return role;
        }
        self.known.iter().find(|known| known.arn == role.arn).unwrap_or(role)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex as Held, time::Duration};

    use futures::FutureExt;

    use super::*;
    use crate::{key::kms::local::Local, secret::LocalKek};

    fn role(arn: &str, external_id: Option<&str>) -> AwsRole {
        let (arn, external_id) = (arn.to_owned(), external_id.map(str::to_owned));
        AwsRole { arn, session_name: "coffer".to_owned(), external_id }
    }

    /// Roles that are opened on paper, and those that were.
    fn roles(known: Vec<AwsRole>) -> (Roles, Arc<Held<Vec<AwsRole>>>) {
        let opened = Arc::new(Held::new(Vec::new()));
        let seen = opened.clone();
        let roles = Roles::opened_by(known, move |role| {
            seen.lock().expect("nothing panics while it is held").push(role);
            let kms: Arc<dyn Kms> = Arc::new(Local::new(LocalKek::random()));
            async move { Ok(kms) }.boxed()
        });
        (roles, opened)
    }

    #[tokio::test]
    async fn a_role_is_opened_once_and_each_by_itself() {
        let (roles, opened) = roles(Vec::new());
        let first = roles.reach(&role("a", None)).await.expect("it opens");
        let again = roles.reach(&role("a", None)).await.expect("it opens");
        let other = roles.reach(&role("a", Some("id"))).await.expect("it opens");
        assert!(Arc::ptr_eq(&first, &again) && !Arc::ptr_eq(&first, &other));
        assert_eq!(*opened.lock().expect("no panic"), [role("a", None), role("a", Some("id"))]);
    }

    #[tokio::test]
    async fn what_a_policy_says_of_a_role_now_goes_before_what_a_record_says() {
        let known = vec![role("a", Some("new")), role("a", Some("other")), role("b", None)];
        let (roles, opened) = roles(known);
        for asked in [role("a", Some("old")), role("a", Some("other")), role("b", Some("x")), role("c", Some("old"))] {
            roles.reach(&asked).await.expect("it opens");
        }
        let expected = [role("a", Some("new")), role("a", Some("other")), role("b", None), role("c", Some("old"))];
        assert_eq!(*opened.lock().expect("no panic"), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn the_role_that_nobody_needed_for_longest_makes_room() {
        let (roles, opened) = roles(Vec::new());
        for number in 0..MOST {
            roles.reach(&role(&number.to_string(), None)).await.expect("it opens");
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        roles.reach(&role("0", None)).await.expect("it is open");
        tokio::time::advance(Duration::from_secs(1)).await;
        roles.reach(&role("one more", None)).await.expect("it opens");
        roles.reach(&role("0", None)).await.expect("it is open");
        assert_eq!(opened.lock().expect("no panic").len(), MOST + 1);
        roles.reach(&role("1", None)).await.expect("it opens again");
        assert_eq!(opened.lock().expect("no panic").last(), Some(&role("1", None)));
    }

    #[tokio::test]
    async fn a_provider_without_roles_says_so() {
        let fault = Roles::none().reach(&role("arn:r", None)).await.err().expect("it knows none").to_string();
        assert_eq!(fault, "it is reached in role arn:r, and the provider's type knows no roles");
    }
}
