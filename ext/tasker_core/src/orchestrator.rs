//! TaskerCore::Native::Orchestrator: an orchestrator inside a Ruby process, on tokio threads alone.

use std::sync::{Arc, Mutex, PoisonError};

use magnus::{function, method, prelude::*, Error, RModule, Ruby, Value as RubyValue};
use tasker::engine::member::Kind;
use tasker::health::Health;
use tasker::http::{Server, Serving};
use tasker::orchestrator::Orchestrator as CoreOrchestrator;
use tokio_util::sync::DropGuard;

use crate::runtime::Owned;
use crate::waiting::block_on;
use crate::{client, raise, settings};

#[magnus::wrap(class = "TaskerCore::Native::Orchestrator", free_immediately, size)]
struct Orchestrator(Owned<Parts>);

struct Parts {
    /// Until it is shut down.
    orchestrator: Mutex<Option<CoreOrchestrator>>,
    health: Health,
    serving: Arc<Serving>,
    _following: DropGuard,
}

pub(crate) fn init(ruby: &Ruby, native: RModule) -> Result<(), Error> {
    let class = native.define_class("Orchestrator", ruby.class_object())?;
    class.undef_default_alloc_func();
    class.define_singleton_method("start", function!(Orchestrator::start, 3))?;
    class.define_method("health", method!(Orchestrator::health, 0))?;
    class.define_method("shutdown", method!(Orchestrator::shutdown, 0))?;
    Ok(())
}

impl Orchestrator {
    /// With what this process sets (as a section of tasker.yml has it), and that file's own section where Ruby has read it.
    fn start(ruby: &Ruby, with: RubyValue, flags: RubyValue, file: RubyValue) -> Result<Orchestrator, Error> {
        let shards = client::unwrap(with)?.shards(ruby)?;
        let local = settings::local(ruby, flags, file)?;
        let own = settings::own(ruby, &local)?;
        let listen = own.orchestrator.listen;
        let parts = block_on(ruby, async move {
            // The address first: a port in use should not cost a membership.
            let server = Server::bind(listen, Kind::Orchestrator).await?;
            let shards = shards.of_process(&own);
            let (live, following) = settings::follow(&shards, local).await?;
            let orchestrator = CoreOrchestrator::start_in(&shards, live).await?;
            let health = orchestrator.health().clone();
            Ok(Parts {
                serving: Arc::new(server.start(health.clone())),
                orchestrator: Mutex::new(Some(orchestrator)),
                health,
                _following: following,
            })
        })?;
        Ok(Orchestrator(Owned::new(parts)))
    }

    fn parts(&self, ruby: &Ruby) -> Result<&Parts, Error> {
        let forked = || {
            let message = "this orchestrator belongs to the process that this one was forked from";
            raise::with_class(ruby, "Error", message.into())
        };
        self.0.get().ok_or_else(forked)
    }

    /// How it is, as JSON.
    fn health(ruby: &Ruby, this: &Orchestrator) -> Result<String, Error> {
        let health = this.parts(ruby)?.health.clone();
        let live = block_on(ruby, async move { Ok(health.live().await) })?;
        Ok(serde_json::json!(live).to_string())
    }

    fn shutdown(ruby: &Ruby, this: &Orchestrator) -> Result<(), Error> {
        let parts = this.parts(ruby)?;
        let serving = parts.serving.clone();
        let orchestrator = parts.orchestrator.lock().unwrap_or_else(PoisonError::into_inner).take();
        block_on(ruby, async move {
            if let Some(orchestrator) = orchestrator {
                orchestrator.shutdown().await;
                serving.stop().await;
            }
            Ok(())
        })
    }
}
