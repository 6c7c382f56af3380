//! The server as any client asks it, and volumes whose keys it has wrapped.

use std::{fs, path::Path, sync::Arc};

use aes_gcm::{
    Aes256Gcm, Nonce,
    aead::{Aead as _, KeyInit, Payload},
};
use anyhow::{Context, Result, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use coffer::{
    key::{
        envelope::NONCE_BYTES,
        record::{Base64, Record, StoredKey},
        service::KeyService,
        store::{DekStore, filesystem::Filesystem},
    },
    secret::{Dek, InnerKey},
    volume::VolumeId,
};
use reqwest::Client;
use serde_json::{Value, json};
use testbed::conformance::store::new_key;

use crate::{VOLUMES, soon};

/// The server as any client asks it, over connections that are kept.
pub(crate) struct Direct {
    client: Client,
    url: String,
    token: String,
}

impl Direct {
    /// As a provider is configured.
    pub(crate) fn new(config: &Value) -> Result<Self> {
        let token = fs::read_to_string(text(&config["auth"]["tokenFile"])?)?.trim().to_owned();
        let url = format!("{}{}", text(&config["address"])?, decrypt_path(config)?);
        Ok(Self { client: Client::builder().http1_only().build()?, url, token })
    }

    /// Sends what Coffer sends.
    pub(crate) async fn decrypt(&self, ciphertext: &str, bound: &str) -> Result<InnerKey> {
        let body = json!({ "ciphertext": ciphertext, "associated_data": bound, "context": bound });
        let request = self.client.post(self.url.as_str()).header("x-vault-token", self.token.as_str()).json(&body);
        let answer: Value = request.send().await?.error_for_status()?.json().await?;
        let plaintext = text(&answer["data"]["plaintext"])?;
        Ok(InnerKey::take(BASE64_STANDARD.decode(plaintext)?)?)
    }
}

/// Where the server decrypts with a provider's key.
pub(crate) fn decrypt_path(config: &Value) -> Result<String> {
    Ok(format!("/v1/{}/decrypt/{}", text(&config["mount"])?, text(&config["keyName"])?))
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().context("a configuration or an answer lacks a text")
}

/// A volume's key, as the service has to give it and the server has to decrypt it.
pub(crate) struct Volume {
    pub(crate) id: VolumeId,
    /// The inner key as the server wrapped it.
    pub(crate) ciphertext: String,
    /// What it is bound to, in base64.
    pub(crate) bound: String,
    pub(crate) inner_key: InnerKey,
    pub(crate) dek: Dek,
}

impl Volume {
    /// Opens a record without Coffer's service, and checks that it is the record's key.
    async fn of(record: &Record, server: &Direct) -> Result<Self> {
        let Some(StoredKey::Wrapped { nonce, wrapped_dek, wrapped_inner_key, .. }) = &record.key else {
            bail!("the record of volume {} holds no wrapped key", record.volume_id);
        };
        let ciphertext = String::from_utf8(wrapped_inner_key.as_bytes().to_vec())?;
        let aad = record.binding().aad();
        let bound = BASE64_STANDARD.encode(&aad);
        let inner_key = server.decrypt(&ciphertext, &bound).await?;
        let dek = opened(&inner_key, nonce, wrapped_dek, &aad).context("the inner key does not open the DEK")?;
        record.verify(&dek)?;
        Ok(Self { id: record.volume_id.clone(), ciphertext, bound, inner_key, dek })
    }
}

fn opened(inner_key: &InnerKey, nonce: &Base64, wrapped_dek: &Base64, aad: &[u8]) -> Option<Dek> {
    let nonce: [u8; NONCE_BYTES] = nonce.exactly()?;
    let payload = Payload { msg: wrapped_dek.as_bytes(), aad };
    let dek = Aes256Gcm::new(inner_key.expose_secret().into()).decrypt(&Nonce::from(nonce), payload).ok()?;
    Dek::take(dek).ok()
}

/// Makes the volumes' keys through the service.
pub(crate) async fn prepare(service: &dyn KeyService, server: &Direct, records: &Path) -> Result<Arc<[Volume]>> {
    let (store, mut volumes) = (Filesystem::open(records)?, Vec::new());
    for number in 0..VOLUMES {
        let info = service.create(new_key(&format!("vol-{number}")), soon()).await?;
        let stored = store.get(&info.volume_id, soon()).await?.context("a created key has a record")?;
        volumes.push(Volume::of(&stored.record, server).await?);
    }
    Ok(volumes.into())
}
