//! Whether a CSI socket answers, asked through the socket as any client would: a listener that is bound says nothing of
//! a program that serves nobody any more.

use std::{io, path::Path, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Endpoint, Uri},
};
use tower::service_fn;

use crate::{
    csi::DRIVER_NAME,
    proto::csi::{GetPluginInfoRequest, identity_client::IdentityClient},
};

/// How long the socket may take for its answer: it has nothing to look up.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Why a CSI socket is taken for one that does not answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// No connection can be made.
    #[error("connect to the CSI socket")]
    Connect(#[source] tonic::transport::Error),
    /// The answer is a refusal.
    #[error("ask the CSI socket for its name")]
    Refused(#[source] Status),
    /// Another driver answers.
    #[error("the CSI socket is driver {0}'s")]
    Other(String),
    /// Nothing comes.
    #[error("the CSI socket does not answer within 5 seconds")]
    Late,
}

/// Asks for the driver's name (CSI, GetPluginInfo), on a connection of its own.
///
/// # Errors
/// There is no answer within 5 seconds, or it is another driver's.
pub async fn answers(socket: &Path) -> Result<(), Unanswered> {
    tokio::time::timeout(ANSWER_TIME, ask(socket)).await.unwrap_or(Err(Unanswered::Late))
}

async fn ask(socket: &Path) -> Result<(), Unanswered> {
    let socket = socket.to_owned();
    let connect = service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    let channel = Endpoint::from_static("http://csi").connect_with_connector(connect).await;
    let mut identity = IdentityClient::new(channel.map_err(Unanswered::Connect)?);
    let info = identity.get_plugin_info(GetPluginInfoRequest {}).await.map_err(Unanswered::Refused)?.into_inner();
    if info.name == DRIVER_NAME { Ok(()) } else { Err(Unanswered::Other(info.name)) }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_socket_that_nobody_serves_does_not_answer() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join("csi.sock");
        assert!(matches!(answers(&socket).await, Err(Unanswered::Connect(_))), "nothing is there");
        let listener = UnixListener::bind(&socket).expect("a socket");
        drop(listener);
        assert!(matches!(answers(&socket).await, Err(Unanswered::Connect(_))), "nobody listens any more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_is_bound_and_not_served_does_not_answer() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join("csi.sock");
        let _listener = UnixListener::bind(&socket).expect("a socket");
        assert!(matches!(answers(&socket).await, Err(Unanswered::Late)));
    }
}
