//! Alerts on dead letters: raised once for each crossing of a threshold, delivered at least once.

use serde_json::Value;

use crate::db::Db;
use crate::error::Result;

/// Raises and clears alerts; returns those it raised.
pub(crate) async fn check(db: &Db) -> Result<Vec<Value>> {
    let namespaces: Vec<String> = sqlx::query_scalar("SELECT tasker.alerting_namespaces()")
        .fetch_all(db.pool())
        .await?;
    let mut raised = Vec::new();
    for slice in namespaces.chunks(super::SLICE) {
        let query = sqlx::query_scalar("SELECT tasker.check_alerts($1)");
        raised.extend::<Vec<Value>>(query.bind(slice).fetch_all(db.pool()).await?);
    }
    Ok(raised)
}

/// An alert that is to be delivered now. It comes again later, unless [`delivered`] is called.
pub(crate) async fn take(db: &Db) -> Result<Option<Value>> {
    Ok(sqlx::query_scalar("SELECT tasker.take_alert()").fetch_one(db.pool()).await?)
}

/// The alert arrived.
pub(crate) async fn delivered(db: &Db, alert: &Value) -> Result<()> {
    let id = alert["id"].as_i64().unwrap_or_default();
    sqlx::query("SELECT tasker.alert_delivered($1)").bind(id).execute(db.pool()).await?;
    Ok(())
}
