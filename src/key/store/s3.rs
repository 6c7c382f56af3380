//! The store `s3`: Amazon S3, and servers that speak as it does.
//!
//! Create-only is `If-None-Match: *` and compare-and-swap is `If-Match` (S3's conditional writes). No checksum is sent
//! that a call does not need, because servers other than S3 stumble over them; the signature covers the bytes anyway.

use std::fmt;

use async_trait::async_trait;
use aws_sdk_s3::{
    Client,
    config::{Builder, RequestChecksumCalculation, ResponseChecksumValidation},
    operation::put_object::builders::PutObjectFluentBuilder,
    primitives::ByteStream,
    types::{BucketLocationConstraint, CreateBucketConfiguration},
};

use crate::key::{
    access::{
        SettingsFault,
        aws::{Answer, credentials_hint, sdk_config, told},
    },
    store::{
        StoreFailure,
        object::{Bucket, Object, Put},
        settings,
    },
};

/// The region that no request to make a bucket may name.
const UNNAMED_REGION: &str = "us-east-1";
/// The most names that S3 lists at once.
const PAGE: usize = 1000;
/// More than any record has: what is longer is somebody else's, and is not read to its end.
const MOST_BYTES: usize = 4 << 20;

/// A bucket of S3.
pub struct S3 {
    client: Client,
    bucket: String,
    region: String,
    place: String,
    credentials: String,
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3").field("place", &self.place).finish_non_exhaustive()
    }
}

impl S3 {
    /// A client. Nobody is asked anything yet.
    ///
    /// # Errors
    /// A file cannot be read or does not hold what it should.
    pub async fn open(settings: settings::S3) -> Result<Self, SettingsFault> {
        let settings::S3 { bucket, path_style, place: _, access } = settings;
        let config = Builder::from(&sdk_config(&access).await?)
            .force_path_style(path_style)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .build();
        let place = match &access.endpoint {
            None => format!("bucket {bucket} of S3 in {}", access.region),
            Some(endpoint) => format!("bucket {bucket} at {}", endpoint.url),
        };
        let credentials = credentials_hint(&access);
        Ok(Self { client: Client::from_conf(config), bucket, region: access.region, place, credentials })
    }

    async fn put(&self, call: PutObjectFluentBuilder, bytes: Vec<u8>) -> Result<(), Answer> {
        let call = call.bucket(&self.bucket).content_type("application/json").body(ByteStream::from(bytes));
        let output = call.send().await.map_err(|error| Answer::of(&error))?;
        // S3 tags whatever it writes. Who does not, has written nothing that could be replaced.
        output.e_tag().filter(|tag| !tag.is_empty()).map(drop).ok_or(Answer::Garbled)
    }

    fn failure(&self, action: &'static str, answer: Answer) -> StoreFailure {
        let place = self.place.clone();
        match answer {
            Answer::Away(why) => StoreFailure::unreachable(place, why),
            Answer::Garbled => StoreFailure::unreachable(place, "it answered what is no answer of S3"),
            Answer::Throttled(retry_after) => StoreFailure::Throttled { place, retry_after },
            Answer::Unauthenticated(why) => {
                StoreFailure::unauthenticated(place, format!("{why}; {}", self.credentials))
            }
            Answer::Denied(detail) => StoreFailure::Denied { action, place, detail },
            Answer::Other { code, .. } if code == "NoSuchBucket" => StoreFailure::NoBucket { place },
            Answer::Other { code, message, .. } => {
                StoreFailure::Refused { action, place, detail: format!("{code}: {message}") }
            }
        }
    }
}

/// Whether what was refused is the condition, or another writer was there in the same moment.
fn is_condition(status: u16, code: &str) -> bool {
    status == 412 || code == "PreconditionFailed" || code == "ConditionalRequestConflict"
}

#[async_trait]
impl Bucket for S3 {
    fn place(&self) -> String {
        self.place.clone()
    }

    async fn create_bucket(&self) -> Result<(), StoreFailure> {
        let mut call = self.client.create_bucket().bucket(&self.bucket);
        if self.region != UNNAMED_REGION {
            let region = BucketLocationConstraint::from(self.region.as_str());
            let configuration = CreateBucketConfiguration::builder().location_constraint(region).build();
            call = call.create_bucket_configuration(configuration);
        }
        match call.send().await.map_err(|error| Answer::of(&error)) {
            Ok(_) => Ok(()),
            Err(Answer::Other { code, .. }) if code == "BucketAlreadyOwnedByYou" => Ok(()),
            Err(answer) => Err(self.failure("s3:CreateBucket", answer)),
        }
    }

    async fn get(&self, name: &str) -> Result<Option<Object>, StoreFailure> {
        let sent = self.client.get_object().bucket(&self.bucket).key(name).send().await;
        let mut output = match sent.map_err(|error| Answer::of(&error)) {
            Ok(output) => output,
            Err(Answer::Other { code, .. }) if code == "NoSuchKey" => return Ok(None),
            Err(answer) => return Err(self.failure("s3:GetObject", answer)),
        };
        let Some(tag) = output.e_tag.take().filter(|tag| !tag.is_empty()) else {
            return Err(self.failure("s3:GetObject", Answer::Garbled));
        };
        let mut bytes = Vec::new();
        while bytes.len() <= MOST_BYTES {
            let chunk = output.body.try_next().await;
            let chunk = chunk.map_err(|error| self.failure("s3:GetObject", Answer::Away(told(&error))))?;
            let Some(chunk) = chunk else { break };
            bytes.extend_from_slice(&chunk);
        }
        Ok(Some(Object { bytes, tag }))
    }

    async fn put_new(&self, name: &str, bytes: Vec<u8>) -> Result<Put, StoreFailure> {
        let call = self.client.put_object().key(name).if_none_match("*");
        match self.put(call, bytes).await {
            Ok(()) => Ok(Put::Written),
            Err(Answer::Other { status, code, .. }) if is_condition(status, &code) => Ok(Put::Refused),
            Err(Answer::Other { status: 501, .. }) => {
                Err(StoreFailure::NoPreconditions { place: self.place(), what: "knows no conditional writes" })
            }
            Err(answer) => Err(self.failure("s3:PutObject", answer)),
        }
    }

    async fn put_over(&self, name: &str, tag: &str, bytes: Vec<u8>) -> Result<Put, StoreFailure> {
        let call = self.client.put_object().key(name).if_match(tag);
        match self.put(call, bytes).await {
            Ok(()) => Ok(Put::Written),
            Err(Answer::Other { status, code, .. }) if is_condition(status, &code) || code == "NoSuchKey" => {
                Ok(Put::Refused)
            }
            Err(Answer::Other { status: 501, .. }) => {
                Err(StoreFailure::NoPreconditions { place: self.place(), what: "knows no conditional writes" })
            }
            Err(answer) => Err(self.failure("s3:PutObject", answer)),
        }
    }

    async fn names(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, StoreFailure> {
        let mut names: Vec<String> = Vec::new();
        while names.len() < limit {
            // Each page begins after the last name, and needs no token that may have ended.
            let after = names.last().map(String::as_str).or(after).map(str::to_owned);
            let page = i32::try_from((limit - names.len()).min(PAGE)).expect("a page has at most 1,000 names");
            let call = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix).max_keys(page);
            let sent = call.set_start_after(after.clone()).send().await;
            let listed = sent.map_err(|error| self.failure("s3:ListBucket", Answer::of(&error)))?;
            let (is_last, before) = (!listed.is_truncated.unwrap_or(false), names.len());
            let page = listed.contents.into_iter().flatten().filter_map(|object| object.key);
            names.extend(page.filter(|name| after.as_ref().is_none_or(|after| name > after)));
            if is_last {
                break;
            }
            // A list that seems to end early would leave records out.
            if names.len() == before || !names.is_sorted() {
                let message = "it does not go on after a name, or not in their order: records would be missed";
                let (code, message) = ("list".to_owned(), message.to_owned());
                return Err(self.failure("s3:ListBucket", Answer::Other { status: 200, code, message }));
            }
        }
        names.truncate(limit);
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use url::Url;

    use super::*;
    use crate::key::{
        access::{AwsAccess, AwsAuth, Endpoint},
        calls::CallSettings,
        store::settings::ObjectPlace,
    };

    async fn s3(folder: &Path, endpoint: Option<&str>) -> S3 {
        let (access_key_id_file, secret_access_key_file) = (folder.join("id"), folder.join("secret"));
        std::fs::write(&access_key_id_file, "id").expect("it can be written");
        std::fs::write(&secret_access_key_file, "secret").expect("it can be written");
        let settings = settings::S3 {
            bucket: "records".to_owned(),
            path_style: true,
            place: ObjectPlace { prefix: String::new(), create_if_missing: false, calls: CallSettings::default() },
            access: AwsAccess {
                region: "eu-central-1".to_owned(),
                endpoint: endpoint.map(|url| Endpoint { url: Url::parse(url).expect("a URL") }),
                sts_endpoint: None,
                ca_file: None,
                auth: AwsAuth::Static { access_key_id_file, secret_access_key_file, session_token_file: None },
                roles: Vec::new(),
            },
        };
        S3::open(settings).await.expect("the settings are right")
    }

    #[tokio::test]
    async fn a_failure_names_the_bucket_and_what_to_look_at() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let s3 = s3(folder.path(), None).await;
        let other = |status, code: &str| Answer::Other { status, code: code.to_owned(), message: "so".to_owned() };
        let check = |answer, wanted: &str| assert_eq!(s3.failure("s3:PutObject", answer).to_string(), wanted);
        check(
            other(404, "NoSuchBucket"),
            "bucket records of S3 in eu-central-1 is not there; make it, or set createIfMissing: true",
        );
        check(
            Answer::Denied("AccessDenied: User: arn:aws:iam::1:user/coffer may not".to_owned()),
            "s3:PutObject in bucket records of S3 in eu-central-1 is denied (AccessDenied: User: \
             arn:aws:iam::1:user/coffer may not)",
        );
        check(
            other(301, "PermanentRedirect"),
            "s3:PutObject in bucket records of S3 in eu-central-1 is refused: PermanentRedirect: so",
        );
        let refused = s3.failure("s3:GetObject", Answer::Unauthenticated("InvalidAccessKeyId".to_owned()));
        let StoreFailure::Unauthenticated { source, .. } = refused else { panic!("it is another") };
        assert!(source.to_string().starts_with("InvalidAccessKeyId; check /"), "{source}");
    }

    #[tokio::test]
    async fn who_is_not_there_is_named_with_its_address() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let s3 = s3(folder.path(), Some("http://127.0.0.1:1")).await;
        let failure = s3.get("v1/probe").await.expect_err("nobody listens there");
        assert_eq!(failure.to_string(), "bucket records at http://127.0.0.1:1/ does not answer");
        assert!(matches!(failure, StoreFailure::Unreachable { .. }));
    }
}
