//! `hearken serve`: configuration → engine → listener → drain.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::net::TcpListener;

use crate::config::Config;
use crate::transport;

pub(super) fn serve(config: Config) -> Result<()> {
    super::log(&config);
    tracing::info!(model = config.model.name, "loading");
    let engine = Arc::new(super::engine(&config)?);
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let address = config.server.listen;
        let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        transport::serve(listener, Arc::new(config), engine, interrupted()).await?;
        tracing::info!("drained");
        Ok(())
    })
}

/// Ready at the first SIGINT or SIGTERM.
async fn interrupted() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    // Without a handler the signal itself ends the process.
    drop(tokio::signal::ctrl_c().await);
}
