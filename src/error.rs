//! What can go wrong, said so that the reader can act. [`Error::kind`] tells callers in other languages which class to raise.

use std::borrow::Cow;
use std::sync::Arc;

use uuid::Uuid;

use crate::template::TemplateError;

/// Any error of this library.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The template is not valid; every problem is listed.
    #[error(transparent)]
    Template(#[from] TemplateError),

    /// A registered version never changes.
    #[error("{0}")]
    VersionTaken(String),

    /// A template whose tasks would contain tasks of the same template without end.
    #[error("{0}")]
    Endless(String),

    /// No such template, task, or version.
    #[error("{0}")]
    NotFound(String),

    /// What the caller passed is not acceptable: which input, where in it, and what was expected.
    #[error("{0}")]
    Invalid(String),

    /// An input, result or checkpoint has more than [`MAX_PAYLOAD_BYTES`](crate::engine::payload::MAX_PAYLOAD_BYTES).
    #[error("{0}")]
    TooLarge(String),

    /// A setting is missing or wrong.
    #[error("{0}")]
    Config(String),

    /// A namespace takes no new tasks for now.
    #[error("{message}")]
    Backpressure {
        /// Which, and what to do.
        message: String,
        /// After how many seconds it may, at a guess.
        retry_after: u32,
    },

    /// There is a task that is the same, by its rule of uniqueness.
    #[error("{message}")]
    NotUnique {
        /// Which, and whose rule.
        message: String,
        /// The one that there is.
        task: Uuid,
    },

    /// A namespace lives in another shard.
    #[error("{message}")]
    Moved {
        /// Which, and where.
        message: String,
        /// The number of that shard.
        shard: i32,
    },

    /// This process lost its membership or its lease, and may not act on what it held.
    #[error("stale: {0}")]
    Stale(String),

    /// A part of this process failed again and again.
    #[error("{0}")]
    GivenUp(String),

    /// PostgreSQL cannot be reached, or refuses us.
    #[error("cannot connect to PostgreSQL at {target}: {reason}")]
    Unreachable {
        /// Host, port, user and database; never the password.
        target: String,
        /// What the driver or the server said.
        reason: String,
    },

    /// The API that is asked in place of the database is away or broken.
    #[error("{0}")]
    Server(String),

    /// The database is reachable but has no schema of ours, or one of another version.
    #[error("{0}")]
    NotMigrated(String),

    /// The role that this process connects as may not do that.
    #[error("{0}")]
    Forbidden(String),

    /// The address to listen on is not to be had.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// Host and port.
        address: String,
        /// What the system said.
        reason: String,
    },

    /// Others are at it; trying again later may help.
    #[error("{0}")]
    Busy(String),

    /// A file cannot be read or a program cannot be run.
    #[error("{what}: {source}")]
    System {
        /// The file or program.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },

    /// The coordinator of the configuration cannot be asked, or answers something else.
    #[error("{0}")]
    Coordinator(String),

    /// Anything else that PostgreSQL refused.
    #[error("{}", describe_database_error(.0))]
    Database(Arc<sqlx::Error>),
}

/// The result of most functions here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kinds of [`Error`], as other languages see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// A template is not valid, or its version is taken.
    Template,
    /// Something named does not exist.
    NotFound,
    /// Bad input.
    Invalid,
    /// Bad input: too much of it.
    TooLarge,
    /// Bad configuration, or a database that is not migrated.
    Config,
    /// New work is not taken for now.
    Backpressure,
    /// There is a task that is the same.
    NotUnique,
    /// A lease was lost.
    Stale,
    /// The database, or another server, is away or broken, or what is asked for has moved; trying again later may help.
    Database,
}

impl Error {
    /// What kind of error this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Template(_) | Error::VersionTaken(_) | Error::Endless(_) => ErrorKind::Template,
            Error::NotFound(_) => ErrorKind::NotFound,
            Error::Invalid(_) => ErrorKind::Invalid,
            Error::TooLarge(_) => ErrorKind::TooLarge,
            Error::Config(_)
            | Error::GivenUp(_)
            | Error::NotMigrated(_)
            | Error::Forbidden(_)
            | Error::Listen { .. }
            | Error::System { .. } => ErrorKind::Config,
            Error::Backpressure { .. } => ErrorKind::Backpressure,
            Error::NotUnique { .. } => ErrorKind::NotUnique,
            Error::Stale(_) => ErrorKind::Stale,
            Error::Busy(_)
            | Error::Moved { .. }
            | Error::Unreachable { .. }
            | Error::Server(_)
            | Error::Coordinator(_)
            | Error::Database(_) => ErrorKind::Database,
        }
    }

    /// Whether the data of the call is at fault, so that the same call can never succeed.
    pub(crate) fn is_bad_data(&self) -> bool {
        // Class 22 is "data exception", 54 "program limit exceeded" (nesting, row size).
        self.code().is_some_and(|c| c.starts_with("22") || c.starts_with("54"))
    }

    /// Whether PostgreSQL rolled the transaction back only because of others: deadlock or serialization failure.
    pub(crate) fn is_conflict(&self) -> bool {
        self.code().is_some_and(|c| c == "40P01" || c == "40001")
    }

    /// The SQLSTATE of PostgreSQL's answer, where that is all we have.
    fn code(&self) -> Option<Cow<'_, str>> {
        match self {
            Error::Database(error) => error.as_database_error()?.code(),
            _ => None,
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let sqlx::Error::Database(e) = &error else {
            return Error::Database(Arc::new(error));
        };
        let refusal = e.try_downcast_ref::<sqlx::postgres::PgDatabaseError>();
        let hint = refusal.and_then(|p| p.hint());
        let text = match hint {
            Some(hint) => format!("{}; {hint}", e.message()),
            None => e.message().to_owned(),
        };
        // TK…: raised by our own functions (migrations/), each documented there.
        match e.code().as_deref() {
            Some("TK001") => Error::VersionTaken(text),
            Some("TK002") => Error::NotFound(text),
            // 23514: a check of ours.
            Some("TK003" | "TK004" | "23514") => Error::Invalid(text),
            Some("TK005") => Error::Stale(text),
            Some("TK006") => Error::TooLarge(text),
            Some("TK008") => Error::Forbidden(text),
            Some("TK009") => Error::Endless(text),
            Some("42501") => Error::Forbidden(format!(
                "PostgreSQL says: {text}; the role that this process connects as lacks rights (docs/security.md says which are needed)"
            )),
            Some("TK007") => Error::Backpressure {
                message: text,
                retry_after: refusal.and_then(|p| p.detail()?.parse().ok()).unwrap_or(1),
            },
            Some("TK010") => Error::NotUnique {
                message: text,
                task: refusal.and_then(|p| p.detail()?.parse().ok()).unwrap_or_default(),
            },
            Some("TK011") => Error::Moved {
                message: text,
                shard: refusal.and_then(|p| p.detail()?.parse().ok()).unwrap_or_default(),
            },
            Some("3F000" | "42883" | "42P01") => Error::NotMigrated(format!("the database is not migrated ({text}): run `tasker migrate`")),
            _ => Error::Database(Arc::new(error)),
        }
    }
}

fn describe_database_error(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(e) => format!("PostgreSQL says: {} (SQLSTATE {})", e.message(), e.code().unwrap_or_default()),
        sqlx::Error::PoolTimedOut => {
            "no database connection became free within 10 s: PostgreSQL is away, or this process has too few connections for its work"
                .into()
        }
        sqlx::Error::Io(e) => format!("the connection to PostgreSQL broke: {e}"),
        other => format!("PostgreSQL: {other}"),
    }
}
