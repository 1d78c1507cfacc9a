//! What one process does at a time, for longer than a transaction of ours may last.

use sqlx::{Executor, PgPool, Postgres, Transaction};

use super::Db;
use crate::error::{Error, Result};

/// Nobody else has that turn until this is dropped, or its session is lost.
#[derive(Debug)]
pub(crate) struct Turn {
    session: Transaction<'static, Postgres>,
    process: i32,
    /// Its only connection is that session.
    _pool: PgPool,
}

impl Db {
    /// Takes the turn of a table (`tasker.turn_…`). Errors: [`Error::Invalid`] where it is somebody else's, [`Error::Config`] behind a pooler.
    pub(crate) async fn take_turn(&self, table: &str) -> Result<Turn> {
        let pool = self.direct()?.sessions(1);
        let mut session = pool.begin().await?;
        session.execute("SET LOCAL idle_in_transaction_session_timeout = 0").await?;
        let free: bool = sqlx::query_scalar("SELECT tasker.take_turn($1::regclass)")
            .bind(table)
            .fetch_one(&mut *session)
            .await?;
        if !free {
            return Err(Error::Invalid(format!(
                "somebody else does that at {} at this moment",
                self.target()
            )));
        }
        let process = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *session).await?;
        Ok(Turn {
            session,
            process,
            _pool: pool,
        })
    }
}

impl Turn {
    /// That of PostgreSQL which has it.
    pub(crate) fn process(&self) -> i32 {
        self.process
    }

    /// Errors: it is lost.
    pub(crate) async fn check(&mut self) -> Result<()> {
        self.session.execute("SELECT").await?;
        Ok(())
    }
}
