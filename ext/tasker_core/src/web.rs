//! TaskerCore::Native::Web: the dashboard and the API for requests that a Ruby server has taken.

use magnus::{function, method, prelude::*, Error, RModule, RString, Ruby, Value as RubyValue};
use tasker::api::SignedIn;
use tasker::engine::configuration::coordinator_of;
use tasker::web::{InProcess, Taken};

use crate::runtime::Owned;
use crate::waiting::block_on;
use crate::{client, raise, settings};

#[magnus::wrap(class = "TaskerCore::Native::Web", free_immediately, size)]
struct Web(Owned<InProcess>);

pub(crate) fn init(ruby: &Ruby, native: RModule) -> Result<(), Error> {
    let class = native.define_class("Web", ruby.class_object())?;
    class.undef_default_alloc_func();
    class.define_singleton_method("start", function!(Web::start, 3))?;
    class.define_method("answer", method!(Web::answer, 1))?;
    Ok(())
}

/// [method, target, headers, body, the client's address, [name, role] of who is signed in]; the last two may be nil.
type Request = (
    String,
    String,
    Vec<(String, String)>,
    RString,
    Option<String>,
    Option<(String, String)>,
);

/// [status, [[header, value], …], body]
type Answer = (u16, Vec<(String, String)>, RString);

impl Web {
    /// `trusts_loopback`: whether programs of this host may do everything, as the settings say.
    fn start(ruby: &Ruby, with: RubyValue, file: RubyValue, trusts_loopback: bool) -> Result<Web, Error> {
        let shards = client::unwrap(with)?.shards(ruby)?;
        let nothing = ruby.hash_new().as_value();
        let settings = settings::own(ruby, &settings::local(ruby, nothing, file)?)?;
        let web = block_on(ruby, async move {
            let coordinator = coordinator_of(&shards).await?;
            let shards = shards.for_people(&settings);
            let mut config = settings.api;
            config.trust_loopback &= trusts_loopback;
            InProcess::new(&shards, coordinator, &config)
        })?;
        Ok(Web(Owned::new(web)))
    }

    fn answer(ruby: &Ruby, this: &Web, request: Request) -> Result<Answer, Error> {
        let (method, target, headers, body, address, signed_in) = request;
        let forked = || {
            raise::with_class(
                ruby,
                "Error",
                "this dashboard belongs to the process that this one was forked from".into(),
            )
        };
        let web = this.0.get().ok_or_else(forked)?.clone();
        let signed_in = signed_in.map(|(name, role)| match role.parse() {
            Ok(role) => Ok(SignedIn { name, role }),
            Err(problem) => Err(raise::with_class(ruby, "ConfigurationError", problem)),
        });
        let taken = Taken {
            method,
            target,
            headers,
            // SAFETY: Ruby does not run before it is copied.
            body: unsafe { body.as_slice() }.to_vec(),
            address: address.and_then(|address| address.parse().ok()),
            signed_in: signed_in.transpose()?,
        };
        let answered = block_on(ruby, async move { Ok(web.answer(taken).await) })?;
        Ok((answered.status, answered.headers, ruby.str_from_slice(&answered.body)))
    }
}
