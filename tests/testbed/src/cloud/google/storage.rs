//! Our imitation of Cloud Storage: its JSON API for objects' contents, and its gRPC for names and buckets, at one address,
//! as `storage.googleapis.com` has them.
//!
//! What it follows, by the public references (<https://cloud.google.com/storage/docs/json_api/v1> and
//! `google/storage/v2/storage.proto`):
//!
//! | request | answer |
//! |---|---|
//! | `POST /upload/storage/v1/b/{bucket}/o?uploadType=multipart&name=…`, `multipart/related`: the object's resource, its bytes, and maybe a resource with checksums | 200 object resource with `generation`, `size` (as text) and `crc32c` (base64, big-endian) |
//! | … `ifGenerationMatch=0` where there is an object, or `=N` where the object's generation is another or there is none | 412 `conditionNotMet` |
//! | … over an object, by who may not delete objects | 403 `forbidden`, `storage.objects.delete`; whether it is looked at before the condition is not in the reference: here it is, except for `ifGenerationMatch=0`, which replaces nothing |
//! | … that an organisation's constraint forbids | 412 `orgPolicyConstraintFailed` |
//! | … a CRC32C that does not hold | 400 `invalid` |
//! | `GET /storage/v1/b/{bucket}/o/{object}?alt=media` | 200 the bytes, with `x-goog-generation`, `x-goog-hash`, `x-goog-stored-content-length` |
//! | … no such object, or no such bucket | 404, in plain text: `No such object: {bucket}/{object}`, `The specified bucket does not exist.` |
//! | gRPC ListObjects: `parent`, `prefix`, `lexicographic_start` (inclusive), `lexicographic_end`, `page_size` (at most 1000), `page_token` | names in the order of their bytes, `next_page_token`; NOT_FOUND where there is no such bucket |
//! | gRPC CreateBucket: `parent` `projects/_`, `bucket.project`, `bucket_id` | the bucket; ALREADY_EXISTS |
//! | no token, or none that Google takes | 401 `authError`; UNAUTHENTICATED |
//! | an account without the permission | 403 `forbidden`; PERMISSION_DENIED |
//! | too many requests | 429 |
//!
//! JSON errors are `{"error": {"code", "message", "errors": [{"message", "domain", "reason"}]}}`. Generations count
//! microseconds and grow with each write.

mod grpc;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
};

use anyhow::{Context, Result};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path as UrlPath, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use crc32c::crc32c;
use serde_json::{Value, json};
use tonic::async_trait;

use super::accounts::{Accounts, PROJECT, Who};
use crate::cloud::{
    Forecast, Standing, StoreBed, StoreVariant,
    weather::{Served, Tls, serve, under},
};

const THROTTLED: &str = concat!(
    r#"{"error": {"code": 429, "message": "The rate of changes exceeds the limit.", "errors": [{"#,
    r#""message": "The rate of changes exceeds the limit.", "domain": "usageLimits", "reason": "rateLimitExceeded"}]}}"#
);
const NO_BUCKET: &str = "The specified bucket does not exist.";
const FIRST_GENERATION: i64 = 1_767_225_600_000_000;

/// Our imitation of Cloud Storage.
#[derive(Debug)]
pub struct CloudStorage {
    service: Arc<Service>,
    forecast: Forecast,
    served: Served,
}

impl CloudStorage {
    /// Starts it without any bucket.
    ///
    /// # Errors
    /// A file cannot be written, or no port can be had.
    pub async fn start(folder: &Path) -> Result<Self> {
        let buckets = Buckets { by_name: BTreeMap::new(), generation: FIRST_GENERATION, constraint: None };
        let service = Arc::new(Service { accounts: Accounts::new(folder)?, buckets: Mutex::new(buckets) });
        let forecast = Forecast::new().throttled_by(429, "application/json; charset=UTF-8", THROTTLED);
        let served = serve(router(&service, &forecast), None).await?;
        Ok(Self { service, forecast, served })
    }

    /// Serves the same by TLS as well, as `https://127.0.0.1:PORT`, and says how a configuration is for that.
    ///
    /// # Errors
    /// No port can be had.
    pub async fn by_tls(&self, config: &Value, tls: Tls) -> Result<(Value, Served)> {
        let served = serve(router(&self.service, &self.forecast), Some(tls)).await?;
        let mut config = config.clone();
        config["endpoint"] = format!("https://{}", served.address()).into();
        config["insecureEndpoint"] = false.into();
        Ok((config, served))
    }

    /// The same configuration for an account that may make objects, and neither replace nor delete any.
    #[must_use]
    pub fn without_delete(&self, config: &Value) -> Value {
        let mut config = config.clone();
        config["auth"] = self.service.accounts.auth(Who::User);
        config
    }

    /// From now on an organisation's constraint forbids every write, told with this reason.
    pub fn constrain(&self, reason: &'static str) {
        self.service.buckets().constraint = Some(reason);
    }
}

fn router(service: &Arc<Service>, forecast: &Forecast) -> Router {
    let router = Router::new()
        .route("/upload/storage/v1/b/{bucket}/o", post(upload))
        .route("/storage/v1/b/{bucket}/o/{*object}", get(download))
        .route("/google.storage.v2.Storage/ListObjects", post(grpc::list_objects))
        .route("/google.storage.v2.Storage/CreateBucket", post(grpc::create_bucket))
        .with_state(service.clone());
    under(router, forecast.clone())
}

#[async_trait]
impl StoreBed for CloudStorage {
    fn store(&self) -> &'static str {
        "gcs"
    }

    fn server(&self) -> String {
        "Cloud Storage JSON API v1 and gRPC v2".to_owned()
    }

    fn standing(&self) -> Standing {
        Standing::OurFake
    }

    async fn config(&self, variant: StoreVariant) -> Result<Option<Value>> {
        let bucket = format!("coffer-{}", uuid::Uuid::new_v4().simple());
        if matches!(variant, StoreVariant::Good | StoreVariant::NoPermission) {
            self.service.buckets().by_name.insert(bucket.clone(), BTreeMap::new());
        }
        let who = if variant == StoreVariant::NoPermission { Who::Stranger } else { Who::Owner };
        Ok(Some(json!({
            "type": "gcs",
            "bucket": bucket,
            "project": PROJECT,
            "createIfMissing": variant == StoreVariant::CreateIfMissing,
            "endpoint": format!("http://{}", self.served.address()),
            "insecureEndpoint": true,
            "auth": self.service.accounts.auth(who),
        })))
    }

    fn forecast(&self) -> &Forecast {
        &self.forecast
    }

    async fn overwrite(&self, config: &Value, name: &str, bytes: Vec<u8>) -> Result<()> {
        let bucket = config["bucket"].as_str().context("the configuration names a bucket")?;
        let mut buckets = self.service.buckets();
        let generation = buckets.next_generation();
        let objects = buckets.by_name.get_mut(bucket).context("there is no such bucket")?;
        objects.insert(name.to_owned(), Stored { generation, bytes });
        Ok(())
    }
}

#[derive(Debug)]
struct Service {
    accounts: Accounts,
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    by_name: BTreeMap<String, BTreeMap<String, Stored>>,
    generation: i64,
    constraint: Option<&'static str>,
}

#[derive(Debug)]
struct Stored {
    generation: i64,
    bytes: Vec<u8>,
}

impl Buckets {
    fn next_generation(&mut self) -> i64 {
        self.generation += 1;
        self.generation
    }
}

impl Service {
    fn buckets(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().expect("nothing panics while it is held")
    }

    /// Whether who asks may do this with that.
    fn allows(&self, headers: &HeaderMap, permission: &str, resource: &str) -> Result<(), Refused> {
        let Some(account) = self.accounts.caller(headers) else {
            return Err(Refused(401, "authError", "Invalid Credentials".to_owned()));
        };
        if account.may(permission) {
            return Ok(());
        }
        let email = &account.email;
        let message = format!(
            "{email} does not have {permission} access to the Google Cloud Storage {resource}. Permission '{permission}' \
             denied on resource (or it may not exist)."
        );
        Err(Refused(403, "forbidden", message))
    }
}

/// An error as the JSON API tells it: status, reason, message.
struct Refused(u16, &'static str, String);

impl Refused {
    fn invalid(message: &str) -> Self {
        Self(400, "invalid", message.to_owned())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self(code, reason, message) = self;
        let errors = json!([{"message": message, "domain": "global", "reason": reason}]);
        let body = json!({"error": {"code": code, "message": message, "errors": errors}});
        (StatusCode::from_u16(code).expect("these are statuses"), Json(body)).into_response()
    }
}

async fn upload(
    State(service): State<Arc<Service>>,
    UrlPath(bucket): UrlPath<String>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, Refused> {
    service.allows(&headers, "storage.objects.create", "object")?;
    if query.get("uploadType").is_none_or(|kind| kind != "multipart") {
        return Err(Refused::invalid("only uploads of one request are imitated"));
    }
    let name = query.get("name").ok_or_else(|| Refused::invalid("Required parameter: name"))?;
    let condition = match query.get("ifGenerationMatch").map(|text| text.parse::<i64>()) {
        None => None,
        Some(Ok(generation)) => Some(generation),
        Some(Err(_)) => return Err(Refused::invalid("Invalid value for ifGenerationMatch")),
    };
    let parts = parts(&headers, &body).ok_or_else(|| Refused::invalid("Malformed multipart body."))?;
    let (resource, rest) = parts.split_first().ok_or_else(|| Refused::invalid("Malformed multipart body."))?;
    let (bytes, checksums) = rest.split_first().ok_or_else(|| Refused::invalid("Malformed multipart body."))?;
    let checksum = encoded_checksum(bytes);
    for resource in [resource].into_iter().chain(checksums) {
        let resource: Value = serde_json::from_slice(resource).map_err(|_| Refused::invalid("Parse Error"))?;
        if let Some(told) = resource["crc32c"].as_str().filter(|told| *told != checksum) {
            let message = format!("Provided CRC32C \"{told}\" doesn't match calculated CRC32C \"{checksum}\".");
            return Err(Refused(400, "invalid", message));
        }
    }
    let mut buckets = service.buckets();
    if let Some(reason) = buckets.constraint {
        let message = "Request violates constraint 'constraints/gcp.restrictNonCmekServices'".to_owned();
        return Err(Refused(412, reason, message));
    }
    let generation = buckets.next_generation();
    let objects = buckets.by_name.get_mut(&bucket);
    let objects = objects.ok_or_else(|| Refused(404, "notFound", NO_BUCKET.to_owned()))?;
    let now = objects.get(name).map_or(0, |object| object.generation);
    if now != 0 && condition != Some(0) {
        service.allows(&headers, "storage.objects.delete", "object")?;
    }
    if condition.is_some_and(|generation| generation != now) {
        let message = "At least one of the pre-conditions you specified did not hold.".to_owned();
        return Err(Refused(412, "conditionNotMet", message));
    }
    objects.insert(name.clone(), Stored { generation, bytes: bytes.to_vec() });
    Ok(Json(json!({
        "kind": "storage#object",
        "id": format!("{bucket}/{name}/{generation}"),
        "name": name,
        "bucket": bucket,
        "generation": generation.to_string(),
        "metageneration": "1",
        "size": bytes.len().to_string(),
        "crc32c": checksum,
        "storageClass": "STANDARD",
    })))
}

/// The parts of a `multipart/related` body (RFC 2046, 5.1), without their headers.
fn parts<'a>(headers: &HeaderMap, body: &'a [u8]) -> Option<Vec<&'a [u8]>> {
    let (_, boundary) = headers.get(header::CONTENT_TYPE)?.to_str().ok()?.split_once("boundary=")?;
    let delimiter = format!("\r\n--{}", boundary.trim_matches('"'));
    let (mut rest, mut parts) = (body.strip_prefix(&delimiter.as_bytes()[2..])?, Vec::new());
    while !rest.starts_with(b"--") {
        let end = position(rest, delimiter.as_bytes())?;
        let part = &rest[..end];
        parts.push(&part[position(part, b"\r\n\r\n")? + 4..]);
        rest = &rest[end + delimiter.len()..];
    }
    Some(parts)
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn encoded_checksum(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(crc32c(bytes).to_be_bytes())
}

async fn download(
    State(service): State<Arc<Service>>,
    UrlPath((bucket, name)): UrlPath<(String, String)>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    service.allows(&headers, "storage.objects.get", "object")?;
    if query.get("alt").is_none_or(|alt| alt != "media") {
        return Err(Refused::invalid("only contents are imitated"));
    }
    let missing = |text: String| {
        let kind = [(header::CONTENT_TYPE, "text/html; charset=UTF-8")];
        Ok((StatusCode::NOT_FOUND, kind, text).into_response())
    };
    let buckets = service.buckets();
    let Some(objects) = buckets.by_name.get(&bucket) else { return missing(NO_BUCKET.to_owned()) };
    let Some(object) = objects.get(&name) else { return missing(format!("No such object: {bucket}/{name}")) };
    let told = [
        ("x-goog-generation", object.generation.to_string()),
        ("x-goog-metageneration", "1".to_owned()),
        ("x-goog-stored-content-encoding", "identity".to_owned()),
        ("x-goog-stored-content-length", object.bytes.len().to_string()),
        ("x-goog-hash", format!("crc32c={}", encoded_checksum(&object.bytes))),
        ("x-goog-storage-class", "STANDARD".to_owned()),
    ];
    Ok((told, object.bytes.clone()).into_response())
}
