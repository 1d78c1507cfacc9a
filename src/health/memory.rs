//! How much memory this process has and may have, and what processor time it used.

use serde::Serialize;
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// How much processor time this process has used since it began, in seconds.
pub(super) fn cpu_seconds() -> f64 {
    let (mut system, pid) = (System::new(), Pid::from_u32(std::process::id()));
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, ProcessRefreshKind::nothing().with_cpu());
    system
        .process(pid)
        .map_or(0.0, |process| process.accumulated_cpu_time() as f64 / 1e3)
}

/// Beyond this share of its limit a process is better started again than killed by the kernel in the middle of its work.
const MOST: f64 = 0.95;

/// The memory of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Bytes in main memory (the resident set size): of the whole cgroup where that is what is limited.
    pub used: u64,
    /// Bytes that are allowed: the smaller of the cgroup's and the configured limit. None: no limit.
    pub limit: Option<u64>,
}

impl Memory {
    /// As it is now; `configured` limits this process alone.
    pub(super) fn now(configured: Option<u64>) -> Memory {
        let mut system = System::new();
        system.refresh_memory();
        let pid = Pid::from_u32(std::process::id());
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, ProcessRefreshKind::nothing().with_memory());
        let own = system.process(pid).map_or(0, sysinfo::Process::memory);
        // Without it, cgroup_limits panics: /proc could not be read, for want of descriptors perhaps.
        let known = system.total_memory() > 0;
        let limits = known.then(|| system.cgroup_limits()).flatten();
        let cgroup = limits.filter(|limits| limits.total_memory < system.total_memory());
        match (configured, cgroup) {
            (Some(limit), Some(cgroup)) if cgroup.total_memory < limit => Memory::of(cgroup),
            (None, Some(cgroup)) => Memory::of(cgroup),
            (limit, _) => Memory { used: own, limit },
        }
    }

    fn of(cgroup: sysinfo::CGroupLimits) -> Memory {
        Memory {
            used: cgroup.rss,
            limit: Some(cgroup.total_memory),
        }
    }

    /// Whether it is nearly used up.
    pub(super) fn is_exhausted(&self) -> bool {
        self.limit.is_some_and(|limit| self.used as f64 > limit as f64 * MOST)
    }
}
