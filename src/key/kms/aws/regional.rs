//! AWS KMS in one region: the calls, and what its answers mean for a KEK.

use std::collections::HashMap;

use aws_config::{Region, SdkConfig};
use aws_sdk_kms::{
    Client,
    primitives::Blob,
    types::{EncryptionAlgorithmSpec, KeyMetadata, KeySpec, KeyState, KeyUsageType, Tag},
};

use super::arn::is_same_key;
use crate::{
    key::{
        access::{
            AwsAccess,
            aws::{Answer, credentials_hint},
        },
        kms::{Kek, KekState, KmsFailure, Wrapped},
        record::KekMechanism,
    },
    secret::{InnerKey, KEY_BYTES},
};

/// What KMS says of a KEK in a state in which it does nothing; which state, only its message says.
const INVALID_STATE: &str = "KMSInvalidStateException";
const ENABLE: &str = "if that was not meant to be, `aws kms enable-key` brings it back";
const CANCEL: &str = "until that day, `aws kms cancel-key-deletion`, then `aws kms enable-key`, bring it back";
const IMPORT: &str = "import its key material again; without it, what it wrapped stays closed";

/// A client of one region.
pub(super) struct Regional {
    pub(super) name: String,
    /// Who is asked, for people.
    pub(super) endpoint: String,
    credentials: String,
    rsa: bool,
    pub(super) client: Client,
}

impl Regional {
    pub(super) fn new(name: &str, config: &SdkConfig, access: &AwsAccess, rsa: bool) -> Self {
        let endpoint = match &access.endpoint {
            None => format!("aws-kms in {name}"),
            Some(endpoint) => endpoint.url.to_string(),
        };
        let config = config.to_builder().region(Region::new(name.to_owned())).build();
        let credentials = credentials_hint(access);
        Self { name: name.to_owned(), endpoint, credentials, rsa, client: Client::new(&config) }
    }

    pub(super) async fn describe(&self, kek: &str) -> Result<Kek, KmsFailure> {
        let metadata = self.metadata(kek).await?;
        let mechanism = self.expect_usable(kek, &metadata)?;
        let id = metadata.arn().unwrap_or(metadata.key_id()).to_owned();
        Ok(Kek { id, mechanism })
    }

    pub(super) async fn wrap(
        &self,
        key: &InnerKey,
        kek: &str,
        context: Option<HashMap<String, String>>,
    ) -> Result<Wrapped, KmsFailure> {
        let call = self.client.encrypt().key_id(kek).plaintext(Blob::new(key.expose_secret().as_slice()));
        let (call, mechanism) = match context {
            Some(context) => (call.set_encryption_context(Some(context)), KekMechanism::Symmetric),
            None => (call.encryption_algorithm(EncryptionAlgorithmSpec::RsaesOaepSha256), KekMechanism::RsaOaep256),
        };
        let sent = call.send().await.map_err(|error| Answer::of(&error));
        let output = match sent {
            Ok(output) => output,
            Err(answer) => return Err(self.explained("kms:Encrypt", kek, answer).await),
        };
        let (Some(kek_id), Some(bytes)) = (output.key_id, output.ciphertext_blob) else {
            return Err(self.garbled("an Encrypt without key or ciphertext"));
        };
        Ok(Wrapped { kek_id, mechanism, bytes: bytes.into_inner() })
    }

    pub(super) async fn unwrap(
        &self,
        bytes: &[u8],
        kek: &str,
        context: Option<HashMap<String, String>>,
    ) -> Result<InnerKey, KmsFailure> {
        let call = self.client.decrypt().key_id(kek).ciphertext_blob(Blob::new(bytes));
        let call = match context {
            Some(context) => call.set_encryption_context(Some(context)),
            None => call.encryption_algorithm(EncryptionAlgorithmSpec::RsaesOaepSha256),
        };
        let sent = call.send().await.map_err(|error| Answer::of(&error));
        let output = match sent {
            Ok(output) => output,
            Err(answer) => return Err(self.explained("kms:Decrypt", kek, answer).await),
        };
        let Some(plaintext) = output.plaintext else {
            return Err(self.garbled("a Decrypt without plaintext"));
        };
        // Taken first, so that it is wiped whatever comes next.
        let key = InnerKey::take(plaintext.into_inner());
        if !output.key_id.is_some_and(|used| is_same_key(&used, kek)) {
            return Err(self.garbled("a Decrypt by another KEK than it was asked for"));
        }
        key.map_err(|_| self.garbled(&format!("a Decrypt of another length than {KEY_BYTES} bytes")))
    }

    /// What KMS knows of a KEK.
    pub(super) async fn metadata(&self, kek: &str) -> Result<KeyMetadata, KmsFailure> {
        let sent = self.client.describe_key().key_id(kek).send().await;
        let output = sent.map_err(|error| self.failure("kms:DescribeKey", kek, Answer::of(&error)))?;
        output.key_metadata.ok_or_else(|| self.garbled("a DescribeKey without a key"))
    }

    /// How a KEK wraps, where it is in a state to, and made for it.
    pub(super) fn expect_usable(&self, kek: &str, metadata: &KeyMetadata) -> Result<KekMechanism, KmsFailure> {
        match metadata.key_state() {
            None | Some(KeyState::Enabled | KeyState::Updating) => {}
            Some(KeyState::Disabled) => return Err(unusable(kek, KekState::Disabled)),
            Some(KeyState::PendingDeletion | KeyState::PendingReplicaDeletion) => {
                return Err(unusable(kek, KekState::PendingDeletion));
            }
            Some(KeyState::PendingImport) => return Err(unusable(kek, KekState::NoMaterial)),
            Some(KeyState::Unavailable) => {
                return Err(KmsFailure::unreachable(&*self.endpoint, format!("the key store of {kek} is away")));
            }
            Some(KeyState::Creating) => {
                return Err(KmsFailure::unreachable(&*self.endpoint, format!("{kek} is still being made")));
            }
            Some(other) => {
                return Err(KmsFailure::Refused {
                    action: "kms:DescribeKey",
                    kek_id: kek.to_owned(),
                    detail: format!("it is in state {}, of which Coffer knows nothing", other.as_str()),
                });
            }
        }
        let wrong = |what: &str, hint: &str| {
            Err(KmsFailure::WrongType { kek_id: kek.to_owned(), what: what.to_owned(), hint: hint.to_owned() })
        };
        match metadata.key_usage() {
            None | Some(KeyUsageType::EncryptDecrypt) => {}
            Some(usage) => return wrong(usage.as_str(), "name a KEK whose usage is ENCRYPT_DECRYPT"),
        }
        match (metadata.key_spec(), self.rsa) {
            (None | Some(KeySpec::SymmetricDefault), false) => Ok(KekMechanism::Symmetric),
            (Some(KeySpec::Rsa2048 | KeySpec::Rsa3072 | KeySpec::Rsa4096), true) => Ok(KekMechanism::RsaOaep256),
            (None | Some(KeySpec::SymmetricDefault), true) => {
                wrong("SYMMETRIC_DEFAULT", "set algorithm: symmetric, or name an RSA KEK")
            }
            (Some(spec @ (KeySpec::Rsa2048 | KeySpec::Rsa3072 | KeySpec::Rsa4096)), false) => {
                wrong(spec.as_str(), "set algorithm: rsa-oaep-256, or name a symmetric KEK")
            }
            (Some(spec), _) => wrong(spec.as_str(), "name a symmetric KEK, or an RSA one"),
        }
    }

    /// Makes a KEK for an alias, and says its ARN.
    pub(super) async fn create(&self, alias: &str, tags: Vec<Tag>) -> Result<String, KmsFailure> {
        let spec = if self.rsa { KeySpec::Rsa3072 } else { KeySpec::SymmetricDefault };
        let call = self.client.create_key().key_spec(spec).key_usage(KeyUsageType::EncryptDecrypt);
        let sent = call.description(format!("Coffer: {alias}")).set_tags(Some(tags)).send().await;
        let output = sent.map_err(|error| self.failure("kms:CreateKey", alias, Answer::of(&error)))?;
        let arn = output.key_metadata.and_then(|metadata| metadata.arn);
        arn.ok_or_else(|| self.garbled("a CreateKey without a key"))
    }

    /// Gives a KEK an alias.
    pub(super) async fn name(&self, alias: &str, arn: &str) -> Result<(), Answer> {
        let sent = self.client.create_alias().alias_name(alias).target_key_id(arn).send().await;
        sent.map(drop).map_err(|error| Answer::of(&error))
    }

    /// Gives a KEK a tag more.
    pub(super) async fn tag(&self, arn: &str, tag: Tag) -> Result<(), Answer> {
        let sent = self.client.tag_resource().key_id(arn).tags(tag).send().await;
        sent.map(drop).map_err(|error| Answer::of(&error))
    }

    /// A failure of a call that uses a KEK, whose state is asked for where the answer does not say it.
    async fn explained(&self, action: &'static str, kek: &str, answer: Answer) -> KmsFailure {
        if let Answer::Other { code, message, .. } = &answer
            && code == INVALID_STATE
            && state_in(message).is_none()
            && let Ok(metadata) = self.metadata(kek).await
            && let Err(failure) = self.expect_usable(kek, &metadata)
        {
            return failure;
        }
        self.failure(action, kek, answer)
    }

    /// What an answer means for a KEK.
    pub(super) fn failure(&self, action: &'static str, kek: &str, answer: Answer) -> KmsFailure {
        let kek_id = kek.to_owned();
        let (code, message) = match answer {
            Answer::Away(why) => return KmsFailure::unreachable(&*self.endpoint, why),
            Answer::Throttled(retry_after) => {
                return KmsFailure::Throttled { endpoint: self.endpoint.clone(), retry_after };
            }
            Answer::Unauthenticated(why) => {
                return KmsFailure::unauthenticated(&*self.endpoint, &*self.credentials, why);
            }
            Answer::Denied(detail) => {
                let hint = "allow it in the key's policy, or in the identity's where the key's policy leaves it to \
                            IAM; look at conditions on kms:EncryptionContext, too";
                return KmsFailure::Denied { action, kek_id, detail, hint: hint.to_owned() };
            }
            Answer::Garbled => return self.garbled("what is no answer of AWS KMS"),
            Answer::Other { code, message, .. } => (code, message),
        };
        match (code.as_str(), state_in(&message)) {
            ("NotFoundException", _) => KmsFailure::NoSuchKek {
                kek_id,
                hint: format!("it was looked for in {}; check region, account and spelling", self.name),
            },
            ("DisabledException", _) => unusable(kek, KekState::Disabled),
            (INVALID_STATE, Some(state)) => unusable(kek, state),
            ("IncorrectKeyException" | "InvalidCiphertextException", _) => KmsFailure::Mismatch,
            ("InvalidKeyUsageException" | "UnsupportedOperationException", _) => KmsFailure::WrongType {
                kek_id,
                what: if message.is_empty() { code } else { message },
                hint: "name a symmetric KEK, or an RSA one with algorithm: rsa-oaep-256; its usage is ENCRYPT_DECRYPT"
                    .to_owned(),
            },
            _ => KmsFailure::Refused { action, kek_id, detail: format!("{code}: {message}") },
        }
    }

    fn garbled(&self, what: &str) -> KmsFailure {
        KmsFailure::garbled(&*self.endpoint, what)
    }
}

fn unusable(kek: &str, state: KekState) -> KmsFailure {
    let hint = match state {
        KekState::Disabled => ENABLE,
        KekState::PendingDeletion => CANCEL,
        KekState::NoMaterial | KekState::OutOfTime => IMPORT,
    };
    KmsFailure::Unusable { kek_id: kek.to_owned(), state, hint: hint.to_owned() }
}

/// The state in a message such as `arn:… is pending deletion.`
fn state_in(message: &str) -> Option<KekState> {
    let message = message.to_lowercase().replace(' ', "");
    let states = [
        ("pendingdeletion", KekState::PendingDeletion),
        ("pendingreplicadeletion", KekState::PendingDeletion),
        ("pendingimport", KekState::NoMaterial),
        ("disabled", KekState::Disabled),
    ];
    states.into_iter().find(|(words, _)| message.contains(words)).map(|(_, state)| state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_read_from_what_kms_says() {
        let check = |message: &str, state| assert_eq!(state_in(message), state, "{message}");
        check("arn:aws:kms:eu-west-1:1:key/7 is pending deletion.", Some(KekState::PendingDeletion));
        check("arn:aws:kms:eu-west-1:1:key/7 is pending import.", Some(KekState::NoMaterial));
        check("Key is in state PendingReplicaDeletion", Some(KekState::PendingDeletion));
        check("arn:aws:kms:eu-west-1:1:key/7 is disabled.", Some(KekState::Disabled));
        check("arn:aws:kms:eu-west-1:1:key/7 is unavailable", None);
    }
}
