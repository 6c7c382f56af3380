//! What the API server's answers mean for a record.

use std::time::Duration;

use kube::core::Status;

use super::{LIST, PLACE};
use crate::key::store::StoreFailure;

/// Whether an answer says that there is no such object, and not that there is no such resource.
pub(super) fn is_missing(status: &Status, name: &str) -> bool {
    status.code == 404 && status.details.as_ref().is_some_and(|details| details.name == name)
}

pub(super) fn out_of_order() -> StoreFailure {
    let detail = "the list is not in the order of its names: records would be missed".to_owned();
    StoreFailure::Refused { action: LIST, place: PLACE.to_owned(), detail }
}

pub(super) fn failure(action: &'static str, error: kube::Error) -> StoreFailure {
    let place = PLACE.to_owned();
    match error {
        kube::Error::Api(status) => refused(action, &status),
        kube::Error::Auth(error) => StoreFailure::unauthenticated(place, error),
        error @ (kube::Error::Service(_) | kube::Error::HyperError(_)) => StoreFailure::unreachable(place, error),
        // Its own words would show what came, which may be a proxy's page.
        kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => {
            StoreFailure::Refused { action, place, detail: "the answer is no VolumeKey".to_owned() }
        }
        error => StoreFailure::Refused { action, place, detail: error.to_string() },
    }
}

fn refused(action: &'static str, status: &Status) -> StoreFailure {
    let (place, detail) = (PLACE.to_owned(), status.message.trim().to_owned());
    match status.code {
        401 => StoreFailure::unauthenticated(place, detail),
        403 => StoreFailure::Denied { action, place, detail },
        404 => {
            let detail =
                "there is no custom resource VolumeKey; install it with Coffer's chart (helm upgrade)".to_owned();
            StoreFailure::Refused { action, place, detail }
        }
        429 => {
            let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
            let retry_after = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
            StoreFailure::Throttled { place, retry_after }
        }
        408 | 500.. => StoreFailure::unreachable(place, format!("{}: {detail}", status.code)),
        _ => StoreFailure::Refused { action, place, detail },
    }
}

#[cfg(test)]
mod tests {
    use kube::core::response::StatusDetails;

    use super::*;
    use crate::key::store::kubernetes::GET;

    fn status(code: u16, message: &str) -> Status {
        Status::failure(message, "").with_code(code)
    }

    fn told(failure: &StoreFailure) -> String {
        crate::server::rpc::message(failure)
    }

    #[test]
    fn a_failure_says_what_was_asked_for_and_what_to_do() {
        let check = |status: &Status, wanted: &str| assert_eq!(told(&refused(GET, status)), wanted);
        check(
            &status(403, "User \"coffer\" cannot get resource"),
            "get volumekeys.coffer.csi in the Kubernetes API is denied (User \"coffer\" cannot get resource)",
        );
        check(&status(401, "Unauthorized"), "the Kubernetes API does not take the credentials: Unauthorized");
        check(
            &status(404, "404 page not found"),
            "get volumekeys.coffer.csi in the Kubernetes API is refused: there is no custom resource VolumeKey; install \
             it with Coffer's chart (helm upgrade)",
        );
        check(
            &status(500, "etcdserver: request timed out"),
            "the Kubernetes API does not answer: 500: etcdserver: request timed out",
        );
    }

    #[test]
    fn a_server_that_is_asked_too_often_says_how_long_to_wait() {
        let details = StatusDetails {
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds: 3,
        };
        let waits = refused(LIST, &status(429, "later").with_details(details));
        assert!(matches!(waits, StoreFailure::Throttled { retry_after: Some(time), .. } if time.as_secs() == 3));
        let soon = refused(LIST, &status(429, "later"));
        assert!(matches!(soon, StoreFailure::Throttled { retry_after: None, .. }));
    }

    #[test]
    fn a_missing_object_is_told_from_a_missing_resource() {
        let details = |name: &str| StatusDetails {
            name: name.to_owned(),
            group: String::new(),
            kind: "volumekeys".to_owned(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds: 0,
        };
        assert!(is_missing(&status(404, "").with_details(details("vol-1")), "vol-1"));
        assert!(!is_missing(&status(404, "").with_details(details("")), "vol-1"));
        assert!(!is_missing(&status(404, "404 page not found"), "vol-1"));
    }
}
