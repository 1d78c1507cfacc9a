//! What is done to the system, drawn from a seed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::Signal;
use sqlx::PgPool;
use tasker::private_postgres::PrivatePostgres;

use crate::disk::SmallDisk;
use crate::processes::Processes;
use crate::proxy::{BLACK_HOLE, PASS, SLOW};

/// A template, a namespace or a handler, whichever it is.
const PAUSE: &str = "
    SELECT tasker.pause(w.kind, w.name, 'chaos', NULL) FROM (
        SELECT 'template' AS kind, n.name || '/' || t.name AS name FROM tasker.templates t JOIN tasker.namespaces n ON n.id = t.namespace_id
        UNION SELECT 'namespace', n.name FROM tasker.namespaces n
        UNION SELECT 'handler', ts.namespace || '/' || ts.handler FROM tasker.template_steps ts WHERE ts.handler IS NOT NULL
        ) AS w ORDER BY random() LIMIT 1";

const RESUME: &str = "SELECT tasker.resume(p.kind, p.name) FROM tasker.pauses p WHERE p.resumed_at IS NULL";

pub(crate) struct Faults<'a> {
    random: Rng,
    postgres: &'a PrivatePostgres,
    pool: &'a PgPool,
    disk: Option<&'a SmallDisk>,
    done: BTreeMap<&'static str, usize>,
    /// Nothing but workers that go silent past their lease and then come back with a result.
    only_freezes: bool,
}

impl<'a> Faults<'a> {
    pub(crate) fn new(
        seed: u64,
        postgres: &'a PrivatePostgres,
        pool: &'a PgPool,
        disk: Option<&'a SmallDisk>,
        only_freezes: bool,
    ) -> Faults<'a> {
        Faults {
            random: Rng::with_seed(seed),
            postgres,
            pool,
            disk,
            done: BTreeMap::new(),
            only_freezes,
        }
    }

    /// Does one thing after the other for that long; afterwards everything is whole again. Returns what it did.
    pub(crate) async fn run(mut self, processes: &mut Processes, time: Duration) -> String {
        let began = Instant::now();
        while began.elapsed() < time {
            tokio::time::sleep(Duration::from_millis(self.random.u64(300..2_000))).await;
            self.one(processes).await;
            let revived = processes.revive();
            *self.done.entry("processes started again").or_default() += revived;
        }
        for process in &processes.0 {
            process.set_network(PASS);
            // What was swallowed is not delivered: such connections are dead.
            process.cut();
            process.signal(Signal::SIGCONT);
        }
        while sqlx::query(RESUME).execute(self.pool).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.done
            .iter()
            .map(|(what, count)| format!("{count} {what}"))
            .collect::<Vec<_>>()
            .join(", ")
    }

    async fn one(&mut self, processes: &mut Processes) {
        let chosen = self.random.usize(..processes.0.len());
        let while_it_lasts = Duration::from_millis(self.random.u64(500..6_000));
        let freeze = Duration::from_millis(self.random.u64(3_500..5_000));
        let what = match self.random.u8(..26) {
            _ if self.only_freezes => {
                let worker = self.random.usize(2..processes.0.len());
                processes.0[worker].signal(Signal::SIGSTOP);
                tokio::time::sleep(freeze).await;
                processes.0[worker].signal(Signal::SIGCONT);
                "freezes"
            }
            0..=5 => {
                processes.0[chosen].signal(Signal::SIGKILL);
                "kills"
            }
            6..=8 => {
                processes.0[chosen].signal(Signal::SIGSTOP);
                tokio::time::sleep(while_it_lasts).await;
                processes.0[chosen].signal(Signal::SIGCONT);
                "freezes"
            }
            9..=11 => {
                processes.0[chosen].cut();
                "cut connections"
            }
            12..=13 => {
                processes.0[chosen].set_network(BLACK_HOLE);
                tokio::time::sleep(while_it_lasts).await;
                processes.0[chosen].set_network(PASS);
                "black holes"
            }
            14..=15 => {
                processes.0[chosen].set_network(SLOW);
                tokio::time::sleep(while_it_lasts).await;
                processes.0[chosen].set_network(PASS);
                "slow networks"
            }
            16..=17 => {
                let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tasker' AND random() < 0.5";
                sqlx::query(all).execute(self.pool).await.ok();
                "terminated backends"
            }
            18 => {
                self.postgres.crash().unwrap_or_else(|error| panic!("{error}"));
                "crashes of PostgreSQL"
            }
            19..=20 => {
                processes.0[chosen].set_clock(self.random.i32(-100_000..100_000));
                "jumping clocks"
            }
            21..=22 => match self.disk {
                Some(disk) => {
                    disk.fill();
                    tokio::time::sleep(while_it_lasts).await;
                    disk.empty();
                    "full disks"
                }
                None => "disks that cannot be filled here",
            },
            23..=24 => {
                let [pause, resume] = [PAUSE, RESUME].map(|sql| sqlx::query(sql).execute(self.pool));
                pause.await.ok();
                tokio::time::sleep(while_it_lasts).await;
                resume.await.ok();
                "pauses"
            }
            _ => {
                processes.restart_one_by_one().await;
                "rolling restarts"
            }
        };
        *self.done.entry(what).or_default() += 1;
    }
}
