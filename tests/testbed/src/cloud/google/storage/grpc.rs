//! The part of Cloud Storage that is asked by gRPC: lists of names, and making a bucket.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    response::Response,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use crc32c::crc32c;
use googleapis_tonic_google_storage_v2::google::storage::v2 as pb;
use tonic::Status;

use super::{NO_BUCKET, PROJECT, Refused, Service, Stored};

const BUCKETS: &str = "projects/_/buckets/";
/// The most names in one answer.
const PAGE: usize = 1000;

impl Refused {
    /// As gRPC tells it.
    fn status(self) -> Status {
        let Self(code, _, message) = self;
        match code {
            401 => Status::unauthenticated(message),
            403 => Status::permission_denied(message),
            _ => Status::invalid_argument(message),
        }
    }
}

pub(super) async fn list_objects(State(service): State<Arc<Service>>, request: Request) -> Response {
    let headers = request.headers().clone();
    unary(request, move |asked: pb::ListObjectsRequest| {
        service.allows(&headers, "storage.objects.list", "bucket").map_err(Refused::status)?;
        let bucket = asked.parent.strip_prefix(BUCKETS).ok_or_else(|| Status::invalid_argument("no bucket"))?;
        let buckets = service.buckets();
        let objects = buckets.by_name.get(bucket).ok_or_else(|| Status::not_found(NO_BUCKET))?;
        let after = BASE64_STANDARD.decode(&asked.page_token).ok().and_then(|token| String::from_utf8(token).ok());
        let after = after.ok_or_else(|| Status::invalid_argument("no page token"))?;
        let size = usize::try_from(asked.page_size).ok().filter(|size| *size > 0).map_or(PAGE, |size| size.min(PAGE));
        let is_listed = |name: &str| {
            name.starts_with(&asked.prefix)
                && name >= asked.lexicographic_start.as_str()
                && (asked.lexicographic_end.is_empty() || name < asked.lexicographic_end.as_str())
                && (after.is_empty() || name > after.as_str())
        };
        let mut found = objects.iter().filter(|(name, _)| is_listed(name));
        let object = |(name, object): (&String, &Stored)| pb::Object {
            name: name.clone(),
            bucket: asked.parent.clone(),
            generation: object.generation,
            metageneration: 1,
            storage_class: "STANDARD".to_owned(),
            size: i64::try_from(object.bytes.len()).expect("an object is smaller than 2^63 bytes"),
            checksums: Some(pb::ObjectChecksums { crc32c: Some(crc32c(&object.bytes)), ..Default::default() }),
            ..Default::default()
        };
        let page: Vec<_> = found.by_ref().take(size).map(object).collect();
        let last = page.last().map(|object| BASE64_STANDARD.encode(&object.name));
        let next_page_token = if found.next().is_some() { last.unwrap_or_default() } else { String::new() };
        Ok(pb::ListObjectsResponse { objects: page, prefixes: Vec::new(), next_page_token })
    })
    .await
}

pub(super) async fn create_bucket(State(service): State<Arc<Service>>, request: Request) -> Response {
    let headers = request.headers().clone();
    unary(request, move |asked: pb::CreateBucketRequest| {
        service.allows(&headers, "storage.buckets.create", "project").map_err(Refused::status)?;
        let bucket = asked.bucket.unwrap_or_default();
        let is_named = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
        let is_name = (3..=63).contains(&asked.bucket_id.len()) && asked.bucket_id.bytes().all(is_named);
        if asked.parent != "projects/_" || bucket.project != format!("projects/{PROJECT}") || !is_name {
            return Err(Status::invalid_argument("no project, or no name of a bucket"));
        }
        let mut buckets = service.buckets();
        if buckets.by_name.contains_key(&asked.bucket_id) {
            return Err(Status::already_exists("The requested bucket name is not available."));
        }
        buckets.by_name.insert(asked.bucket_id.clone(), BTreeMap::new());
        let name = format!("{BUCKETS}{}", asked.bucket_id);
        Ok(pb::Bucket { name, bucket_id: asked.bucket_id, metageneration: 1, ..bucket })
    })
    .await
}

/// Answers a gRPC call that has one message each way.
async fn unary<Q, R>(request: Request, mut answer: impl FnMut(Q) -> Result<R, Status> + Send) -> Response
where
    Q: prost::Message + Default + Send + 'static,
    R: prost::Message + Default + Send + 'static,
{
    let service = tower::service_fn(move |asked: tonic::Request<Q>| {
        std::future::ready(answer(asked.into_inner()).map(tonic::Response::new))
    });
    let codec = tonic_prost::ProstCodec::<R, Q>::default();
    tonic::server::Grpc::new(codec).unary(service, request).await.map(Body::new)
}
