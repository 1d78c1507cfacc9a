//! How urgent a task is.

use serde::{Deserialize, Serialize};

/// How urgent a task is. A waiting task gains one priority a minute, so that nothing starves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// 1
    Low = 1,
    /// 2
    #[default]
    Normal = 2,
    /// 3
    High = 3,
    /// 4
    Urgent = 4,
}

impl Priority {
    /// The name, as it is written everywhere.
    pub fn name(self) -> &'static str {
        match self {
            Priority::Low => "low",
            Priority::Normal => "normal",
            Priority::High => "high",
            Priority::Urgent => "urgent",
        }
    }
}

impl std::str::FromStr for Priority {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "low" => Ok(Priority::Low),
            "normal" => Ok(Priority::Normal),
            "high" => Ok(Priority::High),
            "urgent" => Ok(Priority::Urgent),
            other => Err(format!("unknown priority {other:?}: expected low, normal, high or urgent")),
        }
    }
}
