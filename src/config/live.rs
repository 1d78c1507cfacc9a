//! Settings that change while they are used.

use std::sync::Arc;

use tokio::sync::{watch, Notify};

use super::{Effective, OrchestratorConfig, Settings, WorkerConfig};
use crate::error::Result;

/// What is in force now, for whoever asks each time. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Live {
    effective: watch::Receiver<Arc<Effective>>,
    refresh: Arc<Notify>,
}

impl Live {
    pub(super) fn new(effective: watch::Receiver<Arc<Effective>>, refresh: Arc<Notify>) -> Live {
        Live { effective, refresh }
    }

    /// What is in force, and how it came about.
    pub fn effective(&self) -> Arc<Effective> {
        self.effective.borrow().clone()
    }

    /// Waits for a change; for ever where there will be none.
    pub async fn changed(&mut self) {
        if self.effective.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Errors: [`Error::Config`] with everything that is wrong.
    pub(crate) fn check(&self) -> Result<()> {
        self.effective.borrow().settings.check()
    }

    /// The coordinator may have something new.
    pub(crate) fn refresh(&self) {
        self.refresh.notify_one();
    }

    pub(crate) fn orchestrator(&self) -> OrchestratorConfig {
        self.effective.borrow().settings.orchestrator.clone()
    }

    /// Something of the worker's settings.
    pub(crate) fn worker<T>(&self, of: impl FnOnce(&WorkerConfig) -> T) -> T {
        of(&self.effective.borrow().settings.worker)
    }
}

/// These, which do not change.
impl From<Settings> for Live {
    fn from(settings: Settings) -> Live {
        let effective = Effective::fixed(settings);
        Live::new(watch::channel(Arc::new(effective)).1, Arc::default())
    }
}

/// With the defaults of everything else.
impl From<OrchestratorConfig> for Live {
    fn from(orchestrator: OrchestratorConfig) -> Live {
        Settings {
            orchestrator,
            ..Settings::default()
        }
        .into()
    }
}

/// With the defaults of everything else.
impl From<WorkerConfig> for Live {
    fn from(worker: WorkerConfig) -> Live {
        Settings {
            worker,
            ..Settings::default()
        }
        .into()
    }
}
