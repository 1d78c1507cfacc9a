//! Backpressure: how the namespaces are, for the whole fleet at once; and what they need.

use std::time::Duration;

use crate::db::Db;
use crate::error::Result;

/// A namespace that is not normal, or was not.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Measured {
    /// Its name.
    pub namespace: String,
    /// What it was: normal, warning or critical.
    pub was: String,
    /// What it is.
    pub pressure: String,
    /// How many tasks wait that are not parked at critical, counted no further than the rules need.
    pub depth: i64,
    /// For how many seconds the first of them does; None: there is none.
    pub age: Option<f64>,
}

/// Measures the namespaces that have limits, unless another has within `every`, or is at it.
pub async fn measure(db: &Db, every: Duration) -> Result<Vec<Measured>> {
    Ok(sqlx::query_as("SELECT * FROM tasker.measure_pressure(make_interval(secs => $1))")
        .bind(every.as_secs_f64())
        .fetch_all(db.pool())
        .await?)
}

/// Takes down what waits in the namespaces, for their capacity, once in ten seconds whoever asks.
pub(crate) async fn note_traffic(db: &Db) -> Result<()> {
    let mut after = Some(0);
    while let Some(last) = after {
        after = sqlx::query_scalar("SELECT tasker.note_traffic($1)")
            .bind(last)
            .fetch_one(db.pool())
            .await?;
    }
    Ok(())
}
