//! A driver's CSI socket: what is served there, until the driver has come to its end.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use coffer::server::measured::Measured;
use tokio::{net::UnixListener, time::timeout};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};

/// How long connections may stay open when all work has ended.
pub(super) const END_TIME: Duration = Duration::from_secs(5);

/// Serves CSI until `ending` is over: it waits for what ends the driver, sees to it that the work under way is finished,
/// and says how it came to that.
pub(super) async fn serve(
    socket: &Path,
    listener: UnixListener,
    routes: Routes,
    ending: impl Future<Output = Result<()>>,
) -> Result<()> {
    let end = CancellationToken::new();
    let server = Server::builder()
        .layer(Measured)
        .add_routes(routes)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), end.clone().cancelled_owned());
    tokio::pin!(server);
    let why = tokio::select! {
        served = &mut server => {
            served.context("serve CSI")?;
            anyhow::bail!("the listener ended by itself");
        }
        why = ending => why,
    };
    end.cancel();
    // The socket of a driver that has ended leads nowhere. It goes first, so that it cannot be a later driver's.
    let _ = std::fs::remove_file(socket);
    // A client that keeps its connection open keeps nobody from ending.
    let served = timeout(END_TIME, server).await.unwrap_or(Ok(())).context("serve CSI");
    why.and(served)
}
