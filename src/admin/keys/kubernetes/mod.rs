//! `coffer keys init --kubernetes`: the cluster key as a Secret, and the authority and the certificate with which the key
//! service proves itself to nodes.
//!
//! It can run as often as one likes, also several at once: each object is made only where there is none, and changed only
//! as it was read. A cluster key is never changed. What has no label of ours is somebody else's and is never changed
//! either.

mod objects;

use std::io::Write;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use kube::{Api, Client, api::ListParams};
use uuid::Uuid;

use crate::{
    admin::keys::certificates::{self, Age, Identity},
    config::args::Only,
    key::{cluster::ClusterKeys, store::kubernetes::record_in},
    kubernetes::volume_key::VolumeKey,
};

use objects::{Data, Objects, TIME, Verdict, failed};

pub use crate::admin::keys::certificates::CertificateFault;
pub use objects::InitFailure;

/// So many VolumeKeys are asked for at once.
const PAGE: u32 = 500;

const KEY_FILE: &str = "cluster-key.json";
const AUTHORITY: &str = "ca.crt";
const AUTHORITY_KEY: &str = "ca.key";
const CERTIFICATE: &str = "tls.crt";
const PRIVATE_KEY: &str = "tls.key";
const OPAQUE: &str = "Opaque";
const TLS: &str = "kubernetes.io/tls";

/// What is to be made, and where.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The namespace.
    pub namespace: String,
    /// With what the names of all objects begin.
    pub name: String,
    /// What the key service is called; none for the Service that the chart makes.
    pub service_names: Vec<String>,
    /// A part of it; none for all.
    pub only: Option<Only>,
}

/// Makes what is missing, renews what is old, and says what it did.
///
/// # Errors
/// The API server does not answer or does not let us; a cluster key is gone that records need; or what lies there is not
/// what belongs there.
pub async fn init(client: Client, asked: &Asked, out: &mut impl Write) -> Result<(), InitFailure> {
    let place = Place { objects: Objects::new(client.clone(), &asked.namespace), client, asked };
    tokio::time::timeout(TIME, place.init(out)).await.map_err(|_| InitFailure::Late)?
}

/// An authority that signs now, and those that are to be trusted.
struct Authority {
    signer: Identity,
    bundle: String,
    is_renewed: bool,
}

struct Place<'a> {
    client: Client,
    objects: Objects<'a>,
    asked: &'a Asked,
}

impl Place<'_> {
    fn name(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.asked.name)
    }

    async fn init(&self, out: &mut impl Write) -> Result<(), InitFailure> {
        if self.asked.only != Some(Only::Certificates) {
            self.cluster_key(out).await?;
        }
        if self.asked.only != Some(Only::ClusterKey) {
            self.certificates(Timestamp::now(), out).await?;
        }
        Ok(())
    }

    async fn cluster_key(&self, out: &mut impl Write) -> Result<(), InitFailure> {
        let name = self.name("cluster-key");
        let object = self.objects.called("Secret", &name);
        let found = self.objects.secrets().get_metadata_opt(&name).await.map_err(failed("read", &object))?;
        let may_be_made = found.is_none();
        if may_be_made {
            self.expect_no_need(&object).await?;
        }
        let decide = |found: Option<&Data>| match found {
            None if may_be_made => {
                let keys = ClusterKeys::generate();
                let data = [(KEY_FILE.to_owned(), ByteString(keys.to_bytes().to_vec()))].into();
                Ok(Verdict::Write(data, keys.cluster_id()))
            }
            // It was there a moment ago: somebody takes it away.
            None => Err(InitFailure::Contended { object: object.clone() }),
            Some(data) => cluster_id(data)
                .map(Verdict::Keep)
                .map_err(|what| InitFailure::Unusable { object: object.clone(), what }),
        };
        let (outcome, cluster_id) = self.objects.settle(&name, OPAQUE, decide).await?;
        let namespace = &self.asked.namespace;
        writeln!(out, "cluster key {outcome}: {object}, cluster id {cluster_id}")?;
        writeln!(out, "Back it up where volumes' disks are not: without it no volume can be opened.")?;
        writeln!(
            out,
            "  kubectl -n {namespace} get secret {name} -o jsonpath='{{.data.cluster-key\\.json}}' | base64 -d > {KEY_FILE}"
        )?;
        Ok(())
    }

    /// Looks whether a record needs the key that is not there.
    async fn expect_no_need(&self, object: &str) -> Result<(), InitFailure> {
        let keys: Api<VolumeKey> = Api::all(self.client.clone());
        let (mut params, mut records) = (ListParams::default().limit(PAGE), 0);
        loop {
            let page = match keys.list(&params).await {
                // There is no such resource yet, and so no record.
                Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
                page => page.map_err(failed("list", "VolumeKeys"))?,
            };
            // What cannot be read may need it, and what a KMS has wrapped is bound to the cluster's id, which the key brings.
            let needs = |key: &&VolumeKey| !record_in(key).is_ok_and(|record| record.key.is_none());
            records += page.items.iter().filter(needs).count();
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None if records > 0 => return Err(InitFailure::Lost { object: object.to_owned(), records }),
                None => return Ok(()),
            }
        }
    }

    async fn certificates(&self, now: Timestamp, out: &mut impl Write) -> Result<(), InitFailure> {
        let (name, server_name) = (self.name("authority"), self.name("keyservice-tls"));
        let object = self.objects.called("Secret", &name);
        let (outcome, authority) =
            self.objects.settle(&name, OPAQUE, |found| authority(found, now).map_err(at(&object))).await?;
        let until = certificates::ends(&authority.bundle).map_err(|source| faulty(&object, source))?;
        writeln!(out, "authority {outcome}: {object}, until {}", day(until))?;
        if authority.is_renewed {
            tracing::warn!(%object, "the authority had less than a third of its time left: a new one takes over");
            writeln!(
                out,
                "ATTENTION: the authority had less than a third of its time left. There is a new one, and both are \
                 trusted. Whatever has a copy of {AUTHORITY} outside of this namespace needs the new one as well."
            )?;
        }
        // Those who are to trust an authority hear of it before it has signed anything.
        let outcome = self.objects.publish(&name, AUTHORITY, &authority.bundle).await?;
        writeln!(out, "authority {outcome}: {}, for nodes and controller", self.objects.called("ConfigMap", &name))?;
        let names = certificates::forms(&match self.asked.service_names.as_slice() {
            [] => vec![format!("{}.{}.svc", self.name("keyservice"), self.asked.namespace)],
            given => given.to_vec(),
        });
        let object = self.objects.called("Secret", &server_name);
        let decide = |found: Option<&Data>| server(found, &authority, &names, now).map_err(at(&object));
        let (outcome, certificate) = self.objects.settle(&server_name, TLS, decide).await?;
        let until = certificates::ends(&certificate).map_err(|source| faulty(&object, source))?;
        writeln!(out, "certificate {outcome}: {object}, for {}, until {}", names.join(", "), day(until))?;
        Ok(())
    }
}

fn cluster_id(data: &Data) -> Result<Uuid, String> {
    let bytes = data.get(KEY_FILE).ok_or_else(|| format!("it has no {KEY_FILE}"))?;
    ClusterKeys::parse(&bytes.0).map(|keys| keys.cluster_id()).map_err(|fault| format!("{KEY_FILE}: {fault}"))
}

fn authority(found: Option<&Data>, now: Timestamp) -> Result<Verdict<Authority>, CertificateFault> {
    let data = |identity: &Identity| -> Data {
        [
            (AUTHORITY.to_owned(), ByteString(identity.certificate.as_bytes().to_vec())),
            (AUTHORITY_KEY.to_owned(), ByteString(identity.private_key.as_bytes().to_vec())),
        ]
        .into()
    };
    let Some(found) = found else {
        let signer = certificates::authority("", now)?;
        let (data, bundle) = (data(&signer), signer.certificate.clone());
        return Ok(Verdict::Write(data, Authority { signer, bundle, is_renewed: false }));
    };
    let old = Identity { certificate: text(found, AUTHORITY)?, private_key: text(found, AUTHORITY_KEY)?.into() };
    certificates::fits(&old)?;
    let age = certificates::age(&old.certificate, now)?;
    if age == Age::Fresh {
        let bundle = old.certificate.clone();
        return Ok(Verdict::Keep(Authority { signer: old, bundle, is_renewed: false }));
    }
    let new = certificates::authority(&old.certificate, now)?;
    let (data, bundle) = (data(&new), new.certificate.clone());
    // As long as the old one may sign, it does this time: not everybody has heard of the new one yet.
    let signer = if age == Age::Old { old } else { new };
    Ok(Verdict::Write(data, Authority { signer, bundle, is_renewed: true }))
}

fn server(
    found: Option<&Data>,
    authority: &Authority,
    names: &[String],
    now: Timestamp,
) -> Result<Verdict<String>, CertificateFault> {
    let old = found.and_then(|data| {
        let identity =
            Identity { certificate: text(data, CERTIFICATE).ok()?, private_key: text(data, PRIVATE_KEY).ok()?.into() };
        certificates::fits(&identity).ok()?;
        certificates::trusted(&identity.certificate, &authority.bundle, names, now).ok()?;
        let is_fresh = certificates::age(&identity.certificate, now).is_ok_and(|age| age == Age::Fresh);
        is_fresh.then_some(identity)
    });
    let is_told = found.is_some_and(|data| text(data, AUTHORITY).is_ok_and(|told| told == authority.bundle));
    let Identity { certificate, private_key } = match old {
        Some(identity) if is_told => return Ok(Verdict::Keep(identity.certificate)),
        Some(identity) => identity,
        None => certificates::server(&authority.signer, names, now)?,
    };
    let data = [
        (CERTIFICATE.to_owned(), ByteString(certificate.as_bytes().to_vec())),
        (PRIVATE_KEY.to_owned(), ByteString(private_key.as_bytes().to_vec())),
        (AUTHORITY.to_owned(), ByteString(authority.bundle.as_bytes().to_vec())),
    ];
    Ok(Verdict::Write(data.into(), certificate))
}

fn text(data: &Data, key: &str) -> Result<String, CertificateFault> {
    let bytes = data.get(key).ok_or_else(|| CertificateFault::Unusable(format!("it has no {key}")))?;
    String::from_utf8(bytes.0.clone()).map_err(|_| CertificateFault::Unusable(format!("{key} is no text")))
}

fn at(object: &str) -> impl Fn(CertificateFault) -> InitFailure {
    let object = object.to_owned();
    move |fault| match fault {
        CertificateFault::Unusable(what) => InitFailure::Unusable { object: object.clone(), what },
        fault @ CertificateFault::Made(_) => faulty(&object, fault),
    }
}

fn faulty(object: &str, source: CertificateFault) -> InitFailure {
    InitFailure::Certificate { object: object.to_owned(), source }
}

fn day(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d").to_string()
}
