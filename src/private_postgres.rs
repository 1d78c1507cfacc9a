//! A private PostgreSQL in a folder of its own, made from the installed binaries: for `tasker dev`, the demo, the tests and the benchmarks.
//! It listens on loopback only, with a password; as root it runs as an unprivileged user, because PostgreSQL refuses root.

use std::fs;
use std::io;
use std::os::unix::fs::{chown, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::unistd::{Uid, User};
use sqlx::{ConnectOptions, Connection};

use crate::error::{Error, Result};

/// `max_connections`. PostgreSQL's own 100 are too few for all tests at once, with their orchestrators and workers.
const CONNECTIONS: u32 = 300;

/// The cluster in one folder.
#[derive(Debug)]
pub struct PrivatePostgres {
    folder: PathBuf,
    data: PathBuf,
    binaries: PathBuf,
    /// Whom the server runs as, where we are root.
    user: Option<User>,
}

impl PrivatePostgres {
    /// The cluster of `folder`, which is created where it is missing.
    ///
    /// Errors: [`Error::Config`] when PostgreSQL is not installed, saying what to install.
    pub fn in_folder(folder: &Path) -> Result<PrivatePostgres> {
        let system = |source| Error::System {
            what: format!("cannot use the folder {}", folder.display()),
            source,
        };
        fs::create_dir_all(folder).map_err(system)?;
        let folder = folder.canonicalize().map_err(system)?;
        let user = if Uid::effective().is_root() {
            Some(unprivileged_user()?)
        } else {
            None
        };
        let mut postgres = PrivatePostgres {
            data: folder.join("postgres"),
            folder,
            binaries: binaries()?,
            user,
        };
        if !postgres.reaches(&postgres.folder) {
            // Below root's own home, for example: keep the data where its user can get at it.
            let name: String = postgres
                .folder
                .to_string_lossy()
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
                .collect();
            postgres.data = Path::new("/var/tmp").join(format!("tasker{name}")).join("postgres");
        }
        Ok(postgres)
    }

    /// Starts the server unless it runs, with PostgreSQL's own settings but for `max_connections`; see [`PrivatePostgres::start_with`].
    pub async fn start(&self) -> Result<String> {
        self.start_with(&[]).await
    }

    /// Starts the server, with these settings, unless it runs; makes the database `tasker` where it is missing, and returns its URL, which is kept in
    /// the file `database_url` of the folder.
    pub async fn start_with(&self, settings: &[(&str, &str)]) -> Result<String> {
        self.start_on(free_port()?, settings).await
    }

    /// The same on that port.
    pub async fn start_on(&self, port: u16, settings: &[(&str, &str)]) -> Result<String> {
        let url_file = self.folder.join("database_url");
        let password_file = self.folder.join("password");
        if !self.data.join("PG_VERSION").exists() {
            self.init(&password_file)?;
        }
        if !self.is_running() {
            let password = fs::read_to_string(&password_file).map_err(|source| Error::System {
                what: password_file.display().to_string(),
                source,
            })?;
            let log = self.data.join("server.log");
            let mut options =
                format!("-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c max_connections={CONNECTIONS}");
            for (name, value) in settings {
                options.push_str(&format!(" -c {name}={value}"));
            }
            self.pg_ctl(&["start", "-w", "-t", "60", "-l", &log.to_string_lossy(), "-o", &options])?;
            write_private(
                &url_file,
                &format!("postgres://postgres:{}@127.0.0.1:{port}/tasker", password.trim()),
            )?;
        }
        let url = fs::read_to_string(&url_file).map_err(|source| Error::System {
            what: url_file.display().to_string(),
            source,
        })?;
        create_database(&url).await?;
        Ok(url)
    }

    /// Whether the server runs.
    pub fn is_running(&self) -> bool {
        self.run("pg_ctl", &["status", "-D", &self.data.to_string_lossy()])
            .is_ok_and(|output| output.status.success())
    }

    /// Stops the server where it runs; sessions are ended, what was committed is kept.
    pub fn stop(&self) -> Result<()> {
        if self.is_running() {
            self.pg_ctl(&["stop", "-w", "-m", "fast"])?;
        }
        fs::remove_file(self.folder.join("database_url")).ok();
        Ok(())
    }

    fn init(&self, password_file: &Path) -> Result<()> {
        let system = |source| Error::System {
            what: format!("cannot create {}", self.data.display()),
            source,
        };
        self.make_data_folder()?;
        write_private(password_file, &uuid::Uuid::new_v4().simple().to_string())?;
        // initdb reads the password as the user it runs as.
        let readable = self.data.with_extension("password");
        fs::copy(password_file, &readable).map_err(system)?;
        self.give(&readable).map_err(system)?;
        let (data, password) = (self.data.to_string_lossy(), readable.to_string_lossy());
        let done = self.run(
            "initdb",
            &[
                "-D",
                &data,
                "-U",
                "postgres",
                "--auth=scram-sha-256",
                "--pwfile",
                &password,
                "--encoding=UTF8",
                "--locale=C.UTF-8",
            ],
        );
        fs::remove_file(&readable).ok();
        succeeded("initdb", done)
    }

    fn make_data_folder(&self) -> Result<()> {
        let make = || {
            fs::create_dir_all(&self.data)?;
            fs::set_permissions(&self.data, fs::Permissions::from_mode(0o700))?;
            self.give(&self.data)
        };
        make().map_err(|source| Error::System {
            what: format!("cannot create {}", self.data.display()),
            source,
        })
    }

    /// To the user that the server runs as.
    fn give(&self, path: &Path) -> io::Result<()> {
        match &self.user {
            Some(user) => chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())),
            None => Ok(()),
        }
    }

    fn pg_ctl(&self, arguments: &[&str]) -> Result<()> {
        let data = self.data.to_string_lossy();
        let arguments: Vec<&str> = arguments.iter().copied().chain(["-D", &data]).collect();
        succeeded("pg_ctl", self.run("pg_ctl", &arguments))
    }

    /// Stops the server as a crash would, and starts it again on the same port.
    pub fn crash(&self) -> Result<()> {
        let log = self.data.join("server.log");
        self.pg_ctl(&["restart", "-w", "-t", "60", "-m", "immediate", "-l", &log.to_string_lossy()])
    }

    /// A streaming standby of this server, which runs, in another folder, in place of what is there. Start it with [`PrivatePostgres::start`].
    pub fn standby(&self, folder: &Path) -> Result<PrivatePostgres> {
        let standby = PrivatePostgres::in_folder(folder)?;
        let read = |file: &str| {
            let path = self.folder.join(file);
            fs::read_to_string(&path).map_err(|source| Error::System {
                what: path.display().to_string(),
                source,
            })
        };
        write_private(&standby.folder.join("password"), &read("password")?)?;
        fs::remove_dir_all(&standby.data).ok();
        standby.make_data_folder()?;
        let (data, url) = (standby.data.to_string_lossy(), read("database_url")?);
        let done = self.run("pg_basebackup", &["-D", &data, "-R", "-X", "stream", "-c", "fast", "-d", &url]);
        succeeded("pg_basebackup", done)?;
        Ok(standby)
    }

    /// Makes a standby the primary.
    pub fn promote(&self) -> Result<()> {
        self.pg_ctl(&["promote", "-w"])
    }

    /// Stops the server as a power failure would.
    pub fn kill(&self) -> Result<()> {
        self.pg_ctl(&["stop", "-w", "-m", "immediate"])
    }

    /// The folder of its data.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Where a program of this PostgreSQL is, `pgbench` for example.
    pub fn program(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> io::Result<Output> {
        let mut command = Command::new(self.program(program));
        command
            .args(arguments)
            .current_dir("/")
            .env("LC_ALL", "C.UTF-8")
            .stdin(std::process::Stdio::null());
        if let Some(user) = &self.user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command.output()
    }

    /// Whether the user that the server runs as can enter `folder`.
    fn reaches(&self, folder: &Path) -> bool {
        let Some(user) = &self.user else { return true };
        let mut test = Command::new("test");
        test.arg("-x")
            .arg(folder)
            .current_dir("/")
            .uid(user.uid.as_raw())
            .gid(user.gid.as_raw());
        test.status().is_ok_and(|status| status.success())
    }
}

fn unprivileged_user() -> Result<User> {
    ["postgres", "nobody"]
        .iter()
        .find_map(|name| User::from_name(name).ok().flatten())
        .ok_or_else(|| {
            Error::Config(
                "PostgreSQL does not run as root, and there is neither a user postgres nor nobody: run this as another user".into(),
            )
        })
}

/// The folder of initdb and pg_ctl: on the PATH, or where distributions put it, the newest version first.
fn binaries() -> Result<PathBuf> {
    let on_path = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .unwrap_or_default();
    let mut versions: Vec<(u32, PathBuf)> = ["/usr/lib/postgresql", "/usr/pgsql", "/opt/homebrew/opt", "/usr/local/opt"]
        .iter()
        .flat_map(|parent| fs::read_dir(parent).into_iter().flatten().flatten())
        .filter_map(|entry| {
            let version = entry.file_name().to_string_lossy().trim_start_matches("postgresql@").parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    versions.sort();
    on_path
        .into_iter()
        .chain(versions.into_iter().rev().map(|(_, path)| path))
        .filter(|folder| folder.join("pg_ctl").exists())
        // What is on the PATH may be a link to the folder where the other programs are.
        .find_map(|folder| Some(folder.join("initdb").canonicalize().ok()?.parent()?.to_owned()))
        .ok_or_else(|| {
            Error::Config(
                "PostgreSQL is not installed (no initdb and pg_ctl): install it (Debian, Ubuntu: apt-get install postgresql), \
                 or set DATABASE_URL to a server that runs"
                    .into(),
            )
        })
}

fn free_port() -> Result<u16> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    taken.map(|address| address.port()).map_err(|e| Error::Listen {
        address: "127.0.0.1".into(),
        reason: e.to_string(),
    })
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    written
        .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))
        .map_err(|source| Error::System {
            what: path.display().to_string(),
            source,
        })
}

fn succeeded(program: &str, done: io::Result<Output>) -> Result<()> {
    let output = done.map_err(|source| Error::System {
        what: program.to_owned(),
        source,
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stderr, output.stdout].concat();
    Err(Error::Config(format!(
        "{program} failed: {}",
        String::from_utf8_lossy(&said).trim()
    )))
}

async fn create_database(url: &str) -> Result<()> {
    let options: sqlx::postgres::PgConnectOptions = url.parse()?;
    let unreachable = |error: sqlx::Error| Error::Unreachable {
        target: "the private PostgreSQL".into(),
        reason: error.to_string(),
    };
    let mut connection = options.database("postgres").connect().await.map_err(unreachable)?;
    let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = 'tasker')")
        .fetch_one(&mut connection)
        .await?;
    if !exists {
        sqlx::query("CREATE DATABASE tasker").execute(&mut connection).await?;
    }
    Ok(connection.close().await?)
}
