//! A primary and its synchronous standby, which change places again and again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, Executor, PgConnection, PgPool};
use tasker::private_postgres::PrivatePostgres;

use crate::processes::Processes;
use crate::proxy::{BLACK_HOLE, PASS};

/// How long the old primary lives on behind a network that is gone, before it is fenced.
const CUT_OFF: Duration = Duration::from_secs(2);

pub(crate) struct Pair {
    servers: [PrivatePostgres; 2],
    folders: [PathBuf; 2],
    urls: [String; 2],
    primary: usize,
}

/// What of a URL says where its server is.
fn place(url: &str) -> &str {
    url.rsplit_once('@').and_then(|(_, after)| after.split('/').next()).unwrap()
}

impl Pair {
    pub(crate) async fn start(folder: &Path) -> Pair {
        let folders = ["one", "two"].map(|name| folder.join(name));
        let primary = PrivatePostgres::in_folder(&folders[0]).unwrap_or_else(|error| panic!("{error}"));
        let url = primary.start().await.unwrap();
        let standby = primary.standby(&folders[1]).unwrap_or_else(|error| panic!("{error}"));
        let of_standby = standby.start().await.unwrap_or_else(|error| panic!("{error}"));
        let mut pair = Pair {
            servers: [primary, standby],
            folders,
            urls: [url, of_standby],
            primary: 0,
        };
        pair.wait_for_the_standby().await;
        pair
    }

    /// Of both.
    pub(crate) fn url(&self) -> String {
        let both = format!("{},{}", place(&self.urls[0]), place(&self.urls[1]));
        let url = self.urls[0].replace(place(&self.urls[0]), &both);
        format!("{url}?target_session_attrs=read-write")
    }

    /// To the primary of now.
    pub(crate) fn pool(&self) -> PgPool {
        let options = PgPoolOptions::new().max_connections(4).acquire_timeout(Duration::from_secs(60));
        options.connect_lazy(&self.urls[self.primary]).unwrap()
    }

    async fn admin(&self) -> PgConnection {
        PgConnection::connect(&self.urls[self.primary]).await.unwrap()
    }

    /// From now on what is committed is on both.
    async fn wait_for_the_standby(&mut self) {
        let mut admin = self.admin().await;
        admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'").await.unwrap();
        admin.execute("SELECT pg_reload_conf()").await.unwrap();
        let synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        while sqlx::query_scalar::<_, i64>(synchronous).fetch_one(&mut admin).await.unwrap() == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The primary dies, or is cut off from everybody and dies later; the standby takes its place. Prints how long no task was completed.
    pub(crate) async fn fail_over(&mut self, processes: &mut Processes, is_cut_off: bool) {
        let (old, new) = (self.primary, 1 - self.primary);
        let set_proxies = |processes: &Processes, mode| processes.0.iter().for_each(|process| process.proxies[old].set(mode));
        match is_cut_off {
            true => set_proxies(processes, BLACK_HOLE),
            false => self.servers[old].kill().unwrap(),
        }
        let began = Instant::now();
        self.servers[new].promote().unwrap();
        self.primary = new;
        let promoted = began.elapsed();
        let mut admin = self.admin().await;
        // Nobody is left who would confirm what is committed.
        admin.execute("ALTER SYSTEM RESET synchronous_standby_names").await.unwrap();
        admin.execute("SELECT pg_reload_conf()").await.unwrap();
        let completed = "SELECT count(*) FROM tasker.steps WHERE state = 'complete'";
        let before: i64 = sqlx::query_scalar(completed).fetch_one(&mut admin).await.unwrap();
        while sqlx::query_scalar::<_, i64>(completed).fetch_one(&mut admin).await.unwrap() == before {
            assert!(began.elapsed() < Duration::from_secs(60), "nothing goes on on the new primary");
            // Some tasks kill their workers.
            processes.revive();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!(
            "{}: the first completion after {:.1} s, the promotion took {:.1} s of these",
            if is_cut_off { "cut off" } else { "killed" },
            began.elapsed().as_secs_f64(),
            promoted.as_secs_f64()
        );
        if is_cut_off {
            tokio::time::sleep(CUT_OFF).await;
            self.servers[old].kill().unwrap();
            set_proxies(processes, PASS);
            processes.0.iter().for_each(|process| process.proxies[old].cut());
        }
    }

    /// What was the primary is the synchronous standby of what is.
    pub(crate) async fn heal(&mut self) {
        let old = 1 - self.primary;
        let port = place(&self.urls[old]).rsplit_once(':').unwrap().1.parse().unwrap();
        let standby = self.servers[self.primary]
            .standby(&self.folders[old])
            .unwrap_or_else(|error| panic!("{error}"));
        self.urls[old] = standby.start_on(port, &[]).await.unwrap_or_else(|error| panic!("{error}"));
        self.servers[old] = standby;
        self.wait_for_the_standby().await;
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.servers.iter().for_each(|server| drop(server.stop()));
    }
}
