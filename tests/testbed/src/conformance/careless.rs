//! A server that speaks S3 and keeps no promise: it takes conditional writes and forgets the condition, as some old
//! servers and proxies do. Coffer has to find that out before it trusts one with a record.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};

/// What the server forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgets {
    /// Every condition.
    Everything,
    /// `If-Match` alone: it creates only, and replaces whatever is there.
    Replaces,
}

#[derive(Clone)]
struct Shelf {
    forgets: Forgets,
    objects: Arc<Mutex<BTreeMap<String, (Bytes, String)>>>,
}

/// A server with every bucket that is asked for.
pub fn router(forgets: Forgets) -> Router {
    let shelf = Shelf { forgets, objects: Arc::default() };
    Router::new().fallback(answer).with_state(shelf)
}

async fn answer(State(shelf): State<Shelf>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let name = uri.path().trim_matches('/').to_owned();
    let mut objects = shelf.objects.lock().unwrap_or_else(PoisonError::into_inner);
    // A bucket alone: it is there, and a list of it is empty.
    if !name.contains('/') {
        return xml(
            StatusCode::OK,
            "<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>0</KeyCount></ListBucketResult>",
        );
    }
    match method {
        Method::PUT => {
            let is_new = !objects.contains_key(&name);
            if shelf.forgets == Forgets::Replaces && headers.contains_key(header::IF_NONE_MATCH) && !is_new {
                return error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
            }
            let tag = format!("\"{:032x}\"", objects.len() + body.len() * 1000);
            objects.insert(name, (body, tag.clone()));
            (StatusCode::OK, [(header::ETAG, tag)]).into_response()
        }
        Method::GET | Method::HEAD => match objects.get(&name) {
            Some((bytes, tag)) => (StatusCode::OK, [(header::ETAG, tag.clone())], bytes.clone()).into_response(),
            None => error(StatusCode::NOT_FOUND, "NoSuchKey"),
        },
        _ => error(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
    }
}

fn error(status: StatusCode, code: &str) -> Response {
    xml(status, &format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>"))
}

fn xml(status: StatusCode, content: &str) -> Response {
    let kind: [(HeaderName, &str); 1] = [(header::CONTENT_TYPE, "application/xml")];
    (status, kind, format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{content}")).into_response()
}
