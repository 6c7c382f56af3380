//! The store `azure-blob`: records as block blobs of one container.
//!
//! A blob is made with `If-None-Match: *` and replaced with `If-Match`. A list gives names in the order of their bytes,
//! up to 5000 in a page, and begins at a name (`startFrom`, that name included). Older services and emulators know no
//! `startFrom` and begin with the first name; so what comes before is passed over, and a list that begins neither with
//! the name nor before it is not believed, but read from its start.

use async_trait::async_trait;
use azure_core::http::{Etag, RequestContent};
use azure_storage_blob::{
    BlobContainerClient, BlobContainerClientOptions,
    models::{BlobContainerClientListBlobsOptions, BlockBlobClientUploadOptions},
};
use futures::TryStreamExt;
use url::Url;

use crate::key::{
    access::{
        AzureAuth, SettingsFault,
        azure::{AzureFailure, Said, classify, client_options, credential},
    },
    reread::{Reread, secret_text},
    store::{
        StoreFailure,
        object::{Bucket, Object, Put},
        settings,
    },
};

/// A container.
#[derive(Debug)]
pub struct AzureBlob {
    client: Reread<BlobContainerClient>,
    place: String,
}

impl AzureBlob {
    /// A container as it is configured. Nothing is asked of the network yet.
    ///
    /// # Errors
    /// A file cannot be read or does not hold what it should, or the account's URL is none.
    pub fn open(settings: settings::AzureBlob) -> Result<Self, SettingsFault> {
        let account = settings.account_url.as_str().trim_end_matches('/').to_owned();
        let place = format!("container {} of {account}", settings.container);
        let url = container_url(settings.account_url, &settings.container)
            .ok_or_else(|| SettingsFault(format!("{account}: it is no account's URL")))?;
        let credential = credential(&settings.access)?;
        if credential.is_some() && url.scheme() != "https" {
            return Err(SettingsFault(format!("{account}: a token is sent by https only")));
        }
        let options = BlobContainerClientOptions {
            client_options: client_options(&settings.access, &url)?,
            ..Default::default()
        };
        let sas_file = match settings.access.auth {
            AzureAuth::Sas { sas_file } => Some(sas_file),
            AzureAuth::ClientSecret { .. } | AzureAuth::ManagedIdentity { .. } | AzureAuth::WorkloadIdentity { .. } => {
                None
            }
        };
        let files = sas_file.iter().cloned().collect();
        let build = move || {
            let mut url = url.clone();
            if let Some(file) = &sas_file {
                let signature = secret_text(file)?;
                if !signature.contains("sig=") {
                    return Err(SettingsFault(format!("{}: it holds no shared access signature", file.display())));
                }
                url.set_query(Some(signature.trim_start_matches('?')));
            }
            // The SDK's own words would repeat the URL, and with it the signature.
            BlobContainerClient::new(url, credential.clone(), Some(options.clone()))
                .map_err(|_| SettingsFault(format!("{account}: the SDK does not take it for an account's URL")))
        };
        Ok(Self { client: Reread::new(files, build)?, place })
    }

    async fn put(
        &self,
        name: &str,
        bytes: Vec<u8>,
        condition: BlockBlobClientUploadOptions<'static>,
    ) -> Result<Put, StoreFailure> {
        let blob = self.client.current().blob_client(name);
        match blob.upload(RequestContent::from(bytes), Some(condition)).await {
            Ok(_) => Ok(Put::Written),
            Err(error) => match classify(error) {
                AzureFailure::Refused(said) | AzureFailure::NotFound(said) if is_unmet(&said) => Ok(Put::Refused),
                failure => Err(self.failure(WRITE, failure)),
            },
        }
    }

    /// At most `limit` names after `after`, in a list that is to begin at `from`. None where it may have begun behind
    /// that: the name is gone, or the service takes it for something else.
    async fn list(
        &self,
        prefix: &str,
        from: Option<&str>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Option<Vec<String>>, StoreFailure> {
        let fail = |error| self.failure(LIST, classify(error));
        // The name that the list begins with is in it.
        let page = limit.saturating_add(1).min(PAGE);
        let options = BlobContainerClientListBlobsOptions {
            prefix: Some(prefix.to_owned()),
            start_from: from.map(str::to_owned),
            maxresults: i32::try_from(page).ok(),
            ..Default::default()
        };
        let mut blobs = self.client.current().list_blobs(Some(options)).map_err(fail)?;
        let (mut names, mut has_begun) = (Vec::new(), from.is_none());
        while names.len() < limit
            && let Some(blob) = blobs.try_next().await.map_err(fail)?
        {
            let Some(name) = blob.name else { continue };
            if !has_begun && from.is_some_and(|from| name.as_str() > from) {
                return Ok(None);
            }
            has_begun = true;
            if after.is_none_or(|after| name.as_str() > after) {
                names.push(name);
            }
        }
        Ok(has_begun.then_some(names))
    }

    fn failure(&self, action: &'static str, failure: AzureFailure) -> StoreFailure {
        let place = self.place.clone();
        match failure {
            AzureFailure::NoAnswer(source) => StoreFailure::unreachable(place, source),
            AzureFailure::Garbled(what) => StoreFailure::unreachable(place, format!("it answered {what}")),
            AzureFailure::Throttled(retry_after) => StoreFailure::Throttled { place, retry_after },
            AzureFailure::Unauthenticated(source) => StoreFailure::unauthenticated(place, source),
            AzureFailure::Denied(said) if said.code == "AuthenticationFailed" => {
                StoreFailure::unauthenticated(place, said.to_string())
            }
            AzureFailure::Denied(said) => StoreFailure::Denied { action, place, detail: said.to_string() },
            AzureFailure::NotFound(said) if said.code == "ContainerNotFound" => StoreFailure::NoBucket { place },
            AzureFailure::NotFound(said) | AzureFailure::Refused(said) => {
                StoreFailure::Refused { action, place, detail: said.to_string() }
            }
        }
    }
}

const READ: &str = "blobs/read";
const WRITE: &str = "blobs/write";
const LIST: &str = "blobs/read (list)";
const CREATE: &str = "containers/write";
/// Names in a page, at most.
const PAGE: usize = 5000;

fn container_url(account: Url, container: &str) -> Option<Url> {
    let mut url = account;
    url.path_segments_mut().ok()?.pop_if_empty().push(container);
    Some(url)
}

/// Whether it is the condition that was not met. A lease or an immutability policy refuses with the same statuses.
fn is_unmet(said: &Said) -> bool {
    matches!(
        (said.status, said.code.as_str()),
        (409, "BlobAlreadyExists") | (412, "ConditionNotMet" | "") | (404, "BlobNotFound")
    )
}

#[async_trait]
impl Bucket for AzureBlob {
    fn place(&self) -> String {
        self.place.clone()
    }

    async fn create_bucket(&self) -> Result<(), StoreFailure> {
        match self.client.current().create(None).await {
            Ok(_) => Ok(()),
            Err(error) => match classify(error) {
                AzureFailure::Refused(said) if said.code == "ContainerAlreadyExists" => Ok(()),
                failure => Err(self.failure(CREATE, failure)),
            },
        }
    }

    async fn get(&self, name: &str) -> Result<Option<Object>, StoreFailure> {
        let blob = self.client.current().blob_client(name);
        let answer = match blob.download(None).await {
            Ok(answer) => answer,
            Err(error) => {
                return match classify(error) {
                    AzureFailure::NotFound(said) if said.code == "BlobNotFound" => Ok(None),
                    failure => Err(self.failure(READ, failure)),
                };
            }
        };
        let Some(tag) = answer.properties.etag else {
            return Err(self.failure(READ, AzureFailure::Garbled("without an ETag")));
        };
        let bytes = answer.body.collect().await.map_err(|error| self.failure(READ, classify(error)))?;
        Ok(Some(Object { bytes: bytes.to_vec(), tag: tag.into() }))
    }

    async fn put_new(&self, name: &str, bytes: Vec<u8>) -> Result<Put, StoreFailure> {
        let nothing_there = BlockBlobClientUploadOptions { if_none_match: Some(Etag::from("*")), ..Default::default() };
        self.put(name, bytes, nothing_there).await
    }

    async fn put_over(&self, name: &str, tag: &str, bytes: Vec<u8>) -> Result<Put, StoreFailure> {
        let this_there = BlockBlobClientUploadOptions { if_match: Some(Etag::from(tag)), ..Default::default() };
        self.put(name, bytes, this_there).await
    }

    async fn names(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, StoreFailure> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        if let Some(after) = after
            && let Some(names) = self.list(prefix, Some(after), Some(after), limit).await?
        {
            return Ok(names);
        }
        Ok(self.list(prefix, None, after, limit).await?.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use axum::{Router, extract::State, http::Uri};

    use super::*;
    use crate::key::{access::AzureAccess, calls::CallSettings, store::settings::ObjectPlace};

    fn settings(account_url: &str, auth: AzureAuth) -> settings::AzureBlob {
        settings::AzureBlob {
            account_url: account_url.parse().expect("a URL"),
            container: "records".to_owned(),
            place: ObjectPlace { prefix: String::new(), create_if_missing: false, calls: CallSettings::default() },
            access: AzureAccess { auth, authority_host: None, ca_file: None, ip_address: None },
        }
    }

    #[test]
    fn a_container_has_one_slash_before_it() {
        for account in ["https://name.blob.core.windows.net", "https://name.blob.core.windows.net/"] {
            let url = container_url(account.parse().expect("a URL"), "records").expect("it has a path");
            assert_eq!(url.as_str(), "https://name.blob.core.windows.net/records");
        }
        let emulated = container_url("http://127.0.0.1:10000/devstoreaccount1/".parse().expect("a URL"), "records");
        assert_eq!(emulated.expect("it has a path").as_str(), "http://127.0.0.1:10000/devstoreaccount1/records");
        assert_eq!(container_url("data:text".parse().expect("a URL"), "records"), None);
    }

    #[test]
    fn a_signature_is_read_again_and_shown_nowhere() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let write = |text: &str| std::fs::write(file.path(), text).expect("it can be written");
        let open = || {
            let auth = AzureAuth::Sas { sas_file: file.path().to_owned() };
            AzureBlob::open(settings("https://name.blob.core.windows.net", auth))
        };
        write("secret without a signature");
        let refused = open().expect_err("no signature");
        assert!(!refused.to_string().contains("secret"), "{refused}");
        write("?sv=1&sig=one%3D\n");
        let store = open().expect("a signature");
        assert_eq!(store.client.current().url().query(), Some("sv=1&sig=one%3D"));
        write("sv=1&sig=another%3D");
        assert_eq!(store.client.current().url().query(), Some("sv=1&sig=another%3D"));
        assert!(!format!("{store:?} {}", store.place()).contains("sig="));
    }

    /// How a service takes `startFrom`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Takes {
        AsAName,
        NotAtAll,
        BehindThePrefix,
    }

    /// A service with these names, and how many it has sent.
    #[derive(Clone)]
    struct Service {
        takes: Takes,
        names: Arc<Vec<String>>,
        sent: Arc<AtomicUsize>,
    }

    async fn answer(State(service): State<Service>, uri: Uri) -> String {
        let query = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
        let asked: BTreeMap<String, String> = query.into_owned().collect();
        let begins = |name: &&String| {
            let start = asked.get("startFrom").map(|start| match service.takes {
                Takes::AsAName => start.clone(),
                Takes::NotAtAll => String::new(),
                Takes::BehindThePrefix => format!("{}{start}", asked["prefix"]),
            });
            name.starts_with(&asked["prefix"])
                && start.is_none_or(|start| **name >= start)
                && asked.get("marker").is_none_or(|marker| *name >= marker)
        };
        let mut names = service.names.iter().filter(begins);
        let most = asked["maxresults"].parse().expect("a number");
        let page: Vec<_> = names.by_ref().take(most).map(|name| format!("<Blob><Name>{name}</Name></Blob>")).collect();
        service.sent.fetch_add(page.len(), Ordering::SeqCst);
        let next = names.next().map(|name| format!("<NextMarker>{name}</NextMarker>")).unwrap_or_default();
        format!("<EnumerationResults><Blobs>{}</Blobs>{next}</EnumerationResults>", page.concat())
    }

    #[tokio::test]
    async fn a_list_goes_on_behind_a_name_however_the_service_takes_that() {
        let of = |kind| (0..50).map(move |number| format!("v1/c/{kind}-{number:02}.json"));
        let names: Vec<_> = of("pvc").chain(of("vol")).collect();
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "sig=none").expect("it can be written");
        for takes in [Takes::AsAName, Takes::NotAtAll, Takes::BehindThePrefix] {
            let (names, sent) = (Arc::new(names.clone()), Arc::default());
            let service = Service { takes, names: Arc::clone(&names), sent: Arc::clone(&sent) };
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let url = format!("http://{}/account", listener.local_addr().expect("an address"));
            let router = Router::new().fallback(answer).with_state(service);
            let serving = tokio::spawn(async move { axum::serve(listener, router).await });
            let auth = AzureAuth::Sas { sas_file: file.path().to_owned() };
            let store = AzureBlob::open(settings(&url, auth)).expect("a store");

            let mut seen: Vec<String> = Vec::new();
            loop {
                let after = seen.last().map(String::as_str);
                let page = store.names("v1/c/", after, 10).await.expect("it answers");
                let is_last = page.len() < 10;
                seen.extend(page);
                if is_last {
                    break;
                }
            }
            assert_eq!(seen, *names, "{takes:?}");
            let sent = sent.load(Ordering::SeqCst);
            assert!((takes == Takes::AsAName) == (sent <= 125), "{takes:?}: {sent} names were sent");
            // What a list is to go on behind may be gone.
            let page = store.names("v1/c/", Some("v1/c/pvc-20x.json"), 2).await.expect("it answers");
            assert_eq!(page, names[21..23], "{takes:?}");
            serving.abort();
        }
    }

    #[test]
    fn a_token_is_never_sent_in_clear() {
        let auth = AzureAuth::ManagedIdentity { client_id: None };
        let refused = AzureBlob::open(settings("http://127.0.0.1:10000/account", auth)).expect_err("http");
        assert!(refused.to_string().contains("https only"), "{refused}");
    }

    #[test]
    fn a_lease_is_not_an_unmet_condition() {
        let said = |status, code: &str| Said { status, code: code.to_owned(), message: String::new() };
        assert!(is_unmet(&said(409, "BlobAlreadyExists")) && is_unmet(&said(412, "ConditionNotMet")));
        assert!(!is_unmet(&said(412, "LeaseIdMissing")) && !is_unmet(&said(409, "BlobImmutableDueToPolicy")));
        assert!(!is_unmet(&said(404, "ContainerNotFound")));
    }
}
