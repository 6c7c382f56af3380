//! The store `gcs`: objects of a bucket of Google Cloud Storage.
//!
//! A content's tag is the object's generation. A record is created with the precondition that there is none of its name
//! (generation 0), and replaced with that of the generation that was read. Objects are read and written by the JSON API,
//! names are listed and a bucket is made by gRPC, as the SDK has it; both at one endpoint. Uploads are of one request,
//! never resumable. The SDK checks CRC32C both ways.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use google_cloud_auth::credentials::Credentials;
use google_cloud_gax::client_builder;
use google_cloud_storage::{
    client::{Storage, StorageControl},
    model::{
        Bucket as NewBucket,
        bucket::{IamConfig, iam_config::UniformBucketLevelAccess},
    },
    read_resume_policy::NeverResume,
};

use crate::key::{
    access::{
        SettingsFault,
        google::{Cause, Clients, NeverRetry},
    },
    store::{
        StoreFailure,
        object::{Bucket, Object, Put},
        settings,
    },
};

const SERVICE: &str = "https://storage.googleapis.com";
/// What IAM calls what is asked for.
const GET: &str = "storage.objects.get";
const LIST: &str = "storage.objects.list";
const CREATE: &str = "storage.objects.create";
const REPLACE: &str = "storage.objects.delete, which replacing needs,";
const CREATE_BUCKET: &str = "storage.buckets.create";
/// Names in one answer: the service gives no more.
const PAGE: usize = 1000;
/// A record is smaller by far. What is larger is not read to its end, and refused for being cut.
const LARGEST: usize = 1 << 20;
/// A generation that no object has: they count microseconds since 1970.
const NO_GENERATION: i64 = 1;

/// A bucket of Google Cloud Storage.
#[derive(Debug)]
pub struct Gcs {
    bucket: String,
    project: Option<String>,
    endpoint: String,
    clients: Clients<(Storage, StorageControl)>,
    is_seen: AtomicBool,
}

impl Gcs {
    /// A bucket. Nothing is asked of any network yet.
    ///
    /// # Errors
    /// The credentials file cannot be used.
    pub async fn open(settings: settings::Gcs) -> Result<Self, SettingsFault> {
        let settings::Gcs { bucket, project, place: _, access } = settings;
        let endpoint = access.endpoint.map_or_else(|| SERVICE.to_owned(), |endpoint| endpoint.url.to_string());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Ok(Self { bucket, project, endpoint, clients: Clients::new(access.auth)?, is_seen: AtomicBool::new(false) })
    }

    async fn clients(&self) -> Result<(Storage, StorageControl), StoreFailure> {
        let build = |credentials: Credentials| async move {
            // One connection is enough for the few calls that go by gRPC.
            let storage = Storage::builder()
                .with_endpoint(&self.endpoint)
                .with_credentials(credentials.clone())
                .with_retry_policy(NeverRetry)
                .with_read_resume_policy(NeverResume)
                .with_grpc_subchannel_count(1);
            let control = StorageControl::builder()
                .with_endpoint(&self.endpoint)
                .with_credentials(credentials)
                .with_retry_policy(NeverRetry);
            Ok::<_, client_builder::Error>((storage.build().await?, control.build().await?))
        };
        self.clients.client(build).await.map_err(|cause| self.failure("access", cause))
    }

    /// The bucket as the API names it.
    fn resource(&self) -> String {
        format!("projects/_/buckets/{}", self.bucket)
    }

    fn see(&self) {
        self.is_seen.store(true, Ordering::Relaxed);
    }

    /// An object is not there: is its bucket? Both are one status, and told apart by words only; so a bucket that has
    /// never answered is asked for a list. Where that cannot be made, the words decide.
    async fn missing(&self, control: &StorageControl, name: &str, told: &str) -> Result<(), StoreFailure> {
        if told.contains("bucket does not exist") {
            return Err(StoreFailure::NoBucket { place: self.place() });
        }
        if self.is_seen.load(Ordering::Relaxed) {
            return Ok(());
        }
        let list = control.list_objects().set_parent(self.resource()).set_prefix(name).set_page_size(1).send().await;
        let Err(error) = list else {
            self.see();
            return Ok(());
        };
        match self.clients.cause(error) {
            cause @ Cause::NotFound(_) => Err(self.failure(LIST, cause)),
            _ if told.contains("No such object") => Ok(()),
            cause => Err(self.failure(LIST, cause)),
        }
    }

    async fn put(&self, name: &str, over: Option<i64>, bytes: Vec<u8>) -> Result<Put, StoreFailure> {
        let (storage, _) = self.clients().await?;
        let written = storage
            .write_object(self.resource(), name, Bytes::from(bytes))
            .set_if_generation_match(over.unwrap_or(0))
            .set_content_type("application/json")
            .with_resumable_upload_threshold(usize::MAX)
            .send_buffered()
            .await;
        let put = match written.map_err(|error| self.clients.cause(error)) {
            Ok(_) => Put::Written,
            // Any other 412 is no race that somebody else won.
            Err(Cause::Condition(_)) => Put::Refused,
            Err(cause) => return Err(self.failure(if over.is_none() { CREATE } else { REPLACE }, cause)),
        };
        self.see();
        Ok(put)
    }

    fn failure(&self, action: &'static str, cause: Cause) -> StoreFailure {
        let place = self.place();
        match cause {
            Cause::NoAnswer(source) => StoreFailure::Unreachable { place, source },
            Cause::Garbled => StoreFailure::unreachable(place, "the answer makes no sense: is it Cloud Storage?"),
            Cause::Throttled(retry_after) => StoreFailure::Throttled { place, retry_after },
            Cause::Unauthenticated(source) => StoreFailure::Unauthenticated { place, source },
            Cause::Denied(detail) => StoreFailure::Denied { action, place, detail },
            Cause::NotFound(_) => StoreFailure::NoBucket { place },
            Cause::Exists(detail)
            | Cause::Condition(detail)
            | Cause::Precondition(detail)
            | Cause::Invalid(detail)
            | Cause::Other(detail) => StoreFailure::Refused { action, place, detail },
        }
    }
}

#[async_trait]
impl Bucket for Gcs {
    fn place(&self) -> String {
        format!("gs://{} at {}", self.bucket, self.endpoint)
    }

    async fn create_bucket(&self) -> Result<(), StoreFailure> {
        let Some(project) = &self.project else {
            let detail = "set store.project: a bucket is made in a project".to_owned();
            return Err(StoreFailure::Refused { action: CREATE_BUCKET, place: self.place(), detail });
        };
        let access = IamConfig::new()
            .set_uniform_bucket_level_access(UniformBucketLevelAccess::new().set_enabled(true))
            .set_public_access_prevention("enforced");
        let bucket = NewBucket::new().set_project(format!("projects/{project}")).set_iam_config(access);
        let (_, control) = self.clients().await?;
        let request = control.create_bucket().set_parent("projects/_").set_bucket_id(&self.bucket).set_bucket(bucket);
        match request.send().await.map_err(|error| self.clients.cause(error)) {
            // Somebody else was faster. Whether the bucket is ours, the next write shows.
            Ok(_) | Err(Cause::Exists(_)) => Ok(()),
            Err(cause) => Err(self.failure(CREATE_BUCKET, cause)),
        }
    }

    async fn get(&self, name: &str) -> Result<Option<Object>, StoreFailure> {
        let (storage, control) = self.clients().await?;
        let failure = |error| self.failure(GET, self.clients.cause(error));
        let mut answer = match storage.read_object(self.resource(), name).send().await {
            Ok(answer) => answer,
            Err(error) => {
                return match self.clients.cause(error) {
                    Cause::NotFound(told) => self.missing(&control, name, &told).await.map(|()| None),
                    cause => Err(self.failure(GET, cause)),
                };
            }
        };
        let (tag, mut bytes) = (answer.object().generation.to_string(), Vec::new());
        while let Some(chunk) = answer.next().await {
            bytes.extend_from_slice(&chunk.map_err(failure)?);
            if bytes.len() > LARGEST {
                break;
            }
        }
        self.see();
        Ok(Some(Object { bytes, tag }))
    }

    async fn put_new(&self, name: &str, bytes: Vec<u8>) -> Result<Put, StoreFailure> {
        self.put(name, None, bytes).await
    }

    async fn put_over(&self, name: &str, tag: &str, bytes: Vec<u8>) -> Result<Put, StoreFailure> {
        self.put(name, Some(generation(tag)), bytes).await
    }

    async fn names(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, StoreFailure> {
        let (_, control) = self.clients().await?;
        let (mut names, mut token) = (Vec::new(), String::new());
        while names.len() < limit {
            // The name that the list begins after is in it.
            let wanted = (limit - names.len()).saturating_add(1).min(PAGE);
            let page = control
                .list_objects()
                .set_parent(self.resource())
                .set_prefix(prefix)
                .set_lexicographic_start(after.unwrap_or_default())
                .set_page_size(i32::try_from(wanted).expect("a page is at most 1000 names"))
                .set_page_token(token)
                .send()
                .await
                .map_err(|error| self.failure(LIST, self.clients.cause(error)))?;
            self.see();
            let found = page.objects.into_iter().map(|object| object.name);
            names.extend(found.filter(|name| after.is_none_or(|after| name.as_str() > after)));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        names.truncate(limit);
        Ok(names)
    }
}

/// The generation that a tag names; one that no object has where it is none. Zero would mean: where there is no object.
fn generation(tag: &str) -> i64 {
    tag.parse().ok().filter(|generation| *generation > 0).unwrap_or(NO_GENERATION)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{
        access::{GoogleAccess, GoogleAuth},
        calls::CallSettings,
        store::settings::ObjectPlace,
    };

    #[test]
    fn what_is_no_generation_is_one_that_no_object_has() {
        assert_eq!(generation("1700000000000001"), 1_700_000_000_000_001);
        for tag in ["", "0", "-1", "\"00000000000000000000000000000000\"", "99999999999999999999"] {
            assert_eq!(generation(tag), NO_GENERATION, "{tag}");
        }
    }

    #[tokio::test]
    async fn a_failure_says_which_bucket_where() {
        let place = ObjectPlace { prefix: String::new(), create_if_missing: true, calls: CallSettings::default() };
        let access = GoogleAccess { auth: GoogleAuth::Anonymous, endpoint: None };
        let bucket = Gcs::open(settings::Gcs { bucket: "b".to_owned(), project: None, place, access }).await;
        let bucket = bucket.expect("a bucket");
        assert_eq!(bucket.place(), "gs://b at https://storage.googleapis.com");
        let refused = bucket.create_bucket().await.expect_err("it has no project").to_string();
        let said = "is refused: set store.project: a bucket is made in a project";
        assert_eq!(refused, format!("storage.buckets.create in {} {said}", bucket.place()));
        let failure = bucket.failure(GET, Cause::NotFound("HTTP 404".to_owned()));
        assert!(matches!(failure, StoreFailure::NoBucket { .. }));
    }
}
