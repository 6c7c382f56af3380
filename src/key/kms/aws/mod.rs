//! The provider `aws-kms`: a KEK in AWS KMS.
//!
//! A symmetric KEK wraps by Encrypt with an encryption context, which AWS writes into its audit log and asks for again
//! at Decrypt; an RSA KEK wraps by RSAES_OAEP_SHA_256 and takes no context. A record holds the key ARN that Encrypt
//! returned, and Decrypt always names it, so that no other key is ever tried, and an alias that moves changes nothing
//! for what is wrapped already.

mod arn;
mod ensure;
mod regional;
mod rotation;

use std::{collections::HashMap, fmt, time::Duration};

use async_trait::async_trait;
use futures::{FutureExt, future::BoxFuture};

use crate::{
    exec::Deadline,
    key::{
        access::{SettingsFault, aws::sdk_config},
        binding::Binding,
        kms::{ByHand, Kek, Kms, KmsFailure, Periods, Rotation, Wrapped, settings},
        record::KekMechanism,
    },
    secret::InnerKey,
};

use arn::Arn;
use ensure::Made;
use regional::Regional;

/// KEKs in AWS KMS.
pub struct AwsKms {
    settings: settings::AwsKms,
    /// The configured region.
    first: Regional,
    /// Those that are asked for a multi-region KEK when it does not answer.
    others: Vec<Regional>,
    made: Made,
}

impl fmt::Debug for AwsKms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsKms").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// A region, and what a KEK is called there.
struct Place<'a> {
    region: &'a Regional,
    kek: String,
}

/// A question to one region, and who answers it.
type Asked<'a, T> = (&'a str, BoxFuture<'a, Result<T, KmsFailure>>);

impl AwsKms {
    /// A client for each region. Nobody is asked anything yet.
    ///
    /// # Errors
    /// A file cannot be read or does not hold what it should.
    pub async fn open(settings: settings::AwsKms) -> Result<Self, SettingsFault> {
        let config = sdk_config(&settings.access).await?;
        let region = |name: &String| Regional::new(name, &config, &settings.access, settings.rsa);
        let first = region(&settings.access.region);
        let others = settings.fallback_regions.iter().filter(|name| **name != settings.access.region).map(region);
        let others = others.collect();
        Ok(Self { settings, first, others, made: Made::default() })
    }

    fn regions(&self) -> impl Iterator<Item = &Regional> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// The KEK that is meant: one of a name, or the configured one.
    fn kek<'a>(&'a self, kek: Option<&'a str>) -> Result<&'a str, KmsFailure> {
        kek.or(self.settings.key_id.as_deref()).ok_or_else(|| KmsFailure::NoSuchKek {
            kek_id: "of the provider".to_owned(),
            hint: "keyScope gives each class or namespace a KEK of its own, and the provider has none; set keyId to \
                   have one"
                .to_owned(),
        })
    }

    /// Where a KEK is to be asked for, in this order.
    fn places(&self, kek: &str) -> Result<Vec<Place<'_>>, KmsFailure> {
        let in_first = || vec![Place { region: &self.first, kek: kek.to_owned() }];
        let Some(arn) = Arn::parse(kek) else {
            return Ok(if arn::is_multi_region(kek) {
                self.regions().map(|region| Place { region, kek: kek.to_owned() }).collect()
            } else {
                in_first()
            });
        };
        let Some(region) = self.regions().find(|region| region.name == arn.region) else {
            let known: Vec<_> = self.regions().map(|region| region.name.as_str()).collect();
            return Err(KmsFailure::OtherRegion {
                kek_id: kek.to_owned(),
                region: known.join(", "),
                hint: format!("set the provider's region to {0}, or add {0} to its regions", arn.region),
            });
        };
        Ok(if arn.is_multi_region() {
            self.regions().map(|region| Place { region, kek: arn.in_region(&region.name) }).collect()
        } else {
            vec![Place { region, kek: kek.to_owned() }]
        })
    }

    /// What a symmetric KEK binds; none for an RSA one, which takes no context.
    fn context(mechanism: KekMechanism, binding: &Binding<'_>) -> Option<HashMap<String, String>> {
        (mechanism == KekMechanism::Symmetric).then(|| encryption_context(binding))
    }
}

/// The encryption context of a key: what its class or provider adds, and what it is bound to, which nothing replaces.
fn encryption_context(binding: &Binding<'_>) -> HashMap<String, String> {
    let added = binding.context.iter().map(|(key, value)| (key.clone(), value.clone()));
    let bound = [
        ("cluster", binding.cluster_id.to_string()),
        ("volume", binding.volume_id.as_str().to_owned()),
        ("generation", binding.generation.to_string()),
    ];
    added.chain(bound.map(|(key, value)| (key.to_owned(), value))).collect()
}

/// Asks one region after the other until one answers. Each but the last, which has what is left, has its share of the
/// time.
async fn first_answer<T>(asked: Vec<Asked<'_, T>>, deadline: Deadline) -> Result<T, KmsFailure> {
    let (mut left, mut away) = (u32::try_from(asked.len()).expect("there are fewer than 2^32 regions"), None);
    // Another region may lack the replica, or the permission: that says nothing of the key in the one that is away.
    let settle = |answer: Result<T, KmsFailure>, away: Option<KmsFailure>| match (answer, away) {
        (
            Err(KmsFailure::NoSuchKek { .. } | KmsFailure::Denied { .. } | KmsFailure::Unauthenticated { .. }),
            Some(first),
        ) => Err(first),
        (answer, _) => answer,
    };
    for (endpoint, question) in asked {
        if left == 1 {
            return settle(question.await, away);
        }
        let share = deadline.left() / left;
        left -= 1;
        let answer = tokio::time::timeout(share, question).await;
        match answer.unwrap_or_else(|_| Err(KmsFailure::unreachable(endpoint, format!("no answer in {share:?}")))) {
            Err(failure) if failure.is_outage() => {
                tracing::warn!(error = %failure, "the KEK is asked for in another region");
                away.get_or_insert(failure);
            }
            answer => return settle(answer, away),
        }
    }
    Err(KmsFailure::unreachable("aws-kms", "no region is configured"))
}

#[async_trait]
impl Kms for AwsKms {
    async fn describe(&self, kek: Option<&str>, deadline: Deadline) -> Result<Kek, KmsFailure> {
        let kek = self.made.arn(self.kek(kek)?);
        let mut asked: Vec<Asked<'_, Kek>> = Vec::new();
        for Place { region, kek } in self.places(&kek)? {
            let question = async move { region.describe(&kek).await };
            asked.push((region.endpoint.as_str(), question.boxed()));
        }
        first_answer(asked, deadline).await
    }

    async fn wrap(
        &self,
        key: &InnerKey,
        kek: Option<&str>,
        binding: &Binding<'_>,
        deadline: Deadline,
    ) -> Result<Wrapped, KmsFailure> {
        let kek = self.made.arn(self.kek(kek)?);
        let mechanism = if self.settings.rsa { KekMechanism::RsaOaep256 } else { KekMechanism::Symmetric };
        let context = Self::context(mechanism, binding);
        let mut asked: Vec<Asked<'_, Wrapped>> = Vec::new();
        for Place { region, kek } in self.places(&kek)? {
            let context = context.clone();
            let question = async move { region.wrap(key, &kek, context).await };
            asked.push((region.endpoint.as_str(), question.boxed()));
        }
        first_answer(asked, deadline).await
    }

    async fn unwrap(
        &self,
        wrapped: &Wrapped,
        binding: &Binding<'_>,
        deadline: Deadline,
    ) -> Result<InnerKey, KmsFailure> {
        if wrapped.mechanism == KekMechanism::AesKeyWrap256 {
            return Err(KmsFailure::Mismatch);
        }
        let context = Self::context(wrapped.mechanism, binding);
        let mut asked: Vec<Asked<'_, InnerKey>> = Vec::new();
        for Place { region, kek } in self.places(&wrapped.kek_id)? {
            let context = context.clone();
            let question = async move { region.unwrap(&wrapped.bytes, &kek, context).await };
            asked.push((region.endpoint.as_str(), question.boxed()));
        }
        first_answer(asked, deadline).await
    }

    async fn ensure(&self, kek: &str, _: Deadline) -> Result<(), KmsFailure> {
        ensure::ensure(&self.first, &self.made, kek, &self.settings.key_tags).await
    }

    fn rotation_periods(&self, _: Option<&str>) -> Result<Periods, ByHand> {
        if self.settings.rsa { Err(rotation::RSA) } else { Ok(rotation::PERIODS) }
    }

    async fn rotation(&self, kek: Option<&str>, deadline: Deadline) -> Result<Rotation, KmsFailure> {
        let kek = self.made.arn(self.kek(kek)?);
        let mut asked: Vec<Asked<'_, Rotation>> = Vec::new();
        for Place { region, kek } in self.places(&kek)? {
            let question = async move { region.rotation(&kek).await };
            asked.push((region.endpoint.as_str(), question.boxed()));
        }
        first_answer(asked, deadline).await
    }

    async fn rotate_every(&self, period: Duration, kek: Option<&str>, _: Deadline) -> Result<(), KmsFailure> {
        self.rotate(self.kek(kek)?, period).await
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path, time::Duration};

    use uuid::Uuid;

    use super::*;
    use crate::key::access::{AwsAccess, AwsAuth};

    async fn kms(folder: &Path) -> AwsKms {
        let (access_key_id_file, secret_access_key_file) = (folder.join("id"), folder.join("secret"));
        std::fs::write(&access_key_id_file, "id").expect("it can be written");
        std::fs::write(&secret_access_key_file, "secret").expect("it can be written");
        let settings = settings::AwsKms {
            key_id: Some("alias/coffer".to_owned()),
            rsa: false,
            fallback_regions: vec!["eu-west-1".to_owned()],
            key_scope: settings::KeyScope::Key,
            key_prefix: "coffer".to_owned(),
            key_tags: BTreeMap::new(),
            access: AwsAccess {
                region: "eu-central-1".to_owned(),
                endpoint: None,
                sts_endpoint: None,
                ca_file: None,
                auth: AwsAuth::Static { access_key_id_file, secret_access_key_file, session_token_file: None },
                roles: Vec::new(),
            },
        };
        AwsKms::open(settings).await.expect("the settings are right")
    }

    #[tokio::test]
    async fn a_kek_is_asked_for_where_it_is_and_a_multi_region_one_in_every_region() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let kms = kms(folder.path()).await;
        let places = |kek: &str| {
            let places = kms.places(kek)?.into_iter().map(|place| format!("{}: {}", place.region.name, place.kek));
            Ok::<_, KmsFailure>(places.collect::<Vec<_>>())
        };
        let check = |kek: &str, wanted: &[&str]| assert_eq!(places(kek).expect("it is configured"), wanted);
        check("alias/coffer", &["eu-central-1: alias/coffer"]);
        check("0d7b", &["eu-central-1: 0d7b"]);
        check("mrk-7", &["eu-central-1: mrk-7", "eu-west-1: mrk-7"]);
        check("arn:aws:kms:eu-west-1:1:key/0d7b", &["eu-west-1: arn:aws:kms:eu-west-1:1:key/0d7b"]);
        check(
            "arn:aws:kms:eu-west-1:1:key/mrk-7",
            &["eu-central-1: arn:aws:kms:eu-central-1:1:key/mrk-7", "eu-west-1: arn:aws:kms:eu-west-1:1:key/mrk-7"],
        );
        let other = places("arn:aws:kms:us-east-1:1:key/mrk-7").expect_err("it is not configured").to_string();
        assert_eq!(
            other,
            "KEK arn:aws:kms:us-east-1:1:key/mrk-7 is not in eu-central-1, eu-west-1, where it was looked for; set the \
             provider's region to us-east-1, or add us-east-1 to its regions"
        );
    }

    #[test]
    fn nothing_replaces_what_a_key_is_bound_to() {
        let volume_id = "vol-1".parse().expect("an id");
        let context = [("team", "blue"), ("volume", "vol-2")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let context = BTreeMap::from(context);
        let binding = Binding {
            cluster_id: Uuid::from_u128(1),
            volume_id: &volume_id,
            generation: 2,
            luks_uuid: Uuid::from_u128(3),
            context: &context,
        };
        let wanted = [
            ("cluster", "00000000-0000-0000-0000-000000000001"),
            ("generation", "2"),
            ("team", "blue"),
            ("volume", "vol-1"),
        ];
        let wanted = wanted.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(encryption_context(&binding), HashMap::from(wanted));
        assert!(AwsKms::context(KekMechanism::RsaOaep256, &binding).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_region_that_does_not_answer_leaves_time_for_the_next() {
        let away = |endpoint: &'static str| {
            (endpoint, async move { Err(KmsFailure::unreachable(endpoint, "connection refused")) }.boxed())
        };
        let hangs = ("hangs", std::future::pending().boxed());
        let deadline = || Deadline::within(Duration::from_secs(9));
        let answers = ("answers", async { Ok(7) }.boxed());
        assert_eq!(first_answer(vec![hangs, away("away"), answers], deadline()).await.expect("the third answers"), 7);
        let refuses = ("refuses", async { Err::<i32, _>(KmsFailure::Mismatch) }.boxed());
        let last = first_answer(vec![away("first"), refuses, ("unasked", async { Ok(7) }.boxed())], deadline()).await;
        assert!(matches!(last, Err(KmsFailure::Mismatch)));
        let failure = first_answer::<i32>(vec![away("first"), away("second")], deadline()).await;
        assert!(failure.expect_err("none answers").to_string().contains("second"));
    }
}
