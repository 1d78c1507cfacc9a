//! How processes of one host, or container, find each other's health: each orchestrator and worker listens on a socket in the run directory, and
//! answers there what it answers on its port. One that was killed leaves a socket that refuses; one that stands still does not answer in time.
//!
//! The run directory is TASKER_RUN_DIR; by default `tasker-<uid>` in the directory for temporary files.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::net::UnixListener;

use crate::engine::member::Kind;

/// How long one that works may take to answer: an exec probe should take no longer than 300 ms, of which Ruby's start takes half.
const PATIENCE: Duration = Duration::from_millis(150);

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Whether it works.
    Live,
    /// Whether it should be given work.
    Ready,
    /// Everything.
    Detailed,
}

impl Level {
    fn path(self) -> &'static str {
        match self {
            Level::Live => "/health/live",
            Level::Ready => "/ready",
            Level::Detailed => "/health/detailed",
        }
    }

    /// The live level answers from what is known; the others ask the database.
    fn patience(self) -> Duration {
        match self {
            Level::Live => PATIENCE,
            Level::Ready | Level::Detailed => Duration::from_secs(3),
        }
    }
}

/// What a process said, or did not.
#[derive(Debug, Clone)]
pub struct Answer {
    /// orchestrator or worker.
    pub kind: String,
    /// Its process id, as its own pid namespace has it.
    pub pid: String,
    /// Its report, or why there is none.
    pub report: std::result::Result<Report, String>,
}

/// A process's own words.
#[derive(Debug, Clone)]
pub struct Report {
    /// Whether all is well.
    pub well: bool,
    /// The whole of it.
    pub body: Value,
}

impl Report {
    fn words(&self, of: &str) -> Vec<String> {
        let words = self.body[of].as_array().into_iter().flatten();
        words.filter_map(Value::as_str).map(str::to_owned).collect()
    }
}

impl Answer {
    /// Whether the process is there and says that all is well.
    pub fn is_well(&self) -> bool {
        self.report.as_ref().is_ok_and(|report| report.well)
    }

    /// What has failed, in words.
    pub fn failures(&self) -> Vec<String> {
        match &self.report {
            Ok(report) => report.words("failed"),
            Err(why) => vec![why.clone()],
        }
    }

    /// What has not, and somebody should look at all the same.
    pub fn warnings(&self) -> Vec<String> {
        self.report.as_ref().map(|report| report.words("warnings")).unwrap_or_default()
    }
}

/// The socket of this process.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) listener: UnixListener,
    pub(crate) file: SocketFile,
}

/// Removed with this value.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Socket {
    /// Listens, after taking away what dead processes have left.
    pub(crate) fn listen(kind: Kind) -> io::Result<Socket> {
        let folder = folder();
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        check_owner(&folder)?;
        for (_, _, path) in sockets(&folder) {
            if UnixStream::connect(&path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
                std::fs::remove_file(&path).ok();
            }
        }
        let path = folder.join(format!("{}-{}.sock", kind.name(), std::process::id()));
        let listener = UnixListener::bind(&path)?;
        Ok(Socket {
            listener,
            file: SocketFile(path),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

/// Whoever owns the folder, may write into it, or made a link that leads there, could answer in our place.
fn check_owner(folder: &Path) -> io::Result<()> {
    let me = nix::unistd::getuid().as_raw();
    let (link, found) = (std::fs::symlink_metadata(folder)?, std::fs::metadata(folder)?);
    let problem = match () {
        () if link.is_symlink() && ![me, 0].contains(&link.uid()) => "the folder is another user's link",
        () if found.uid() != me => "the folder is another user's",
        () if found.mode() & 0o022 != 0 => "others may write into the folder",
        () => return Ok(()),
    };
    Err(io::Error::new(ErrorKind::PermissionDenied, problem))
}

/// Where the sockets are.
pub(crate) fn folder() -> PathBuf {
    match std::env::var_os("TASKER_RUN_DIR") {
        Some(folder) => folder.into(),
        None => std::env::temp_dir().join(format!("tasker-{}", nix::unistd::getuid())),
    }
}

/// (kind, pid, path) of each socket.
fn sockets(folder: &Path) -> Vec<(String, String, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut sockets: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.path();
            let (kind, pid) = path.file_name()?.to_str()?.strip_suffix(".sock")?.split_once('-')?;
            Some((kind.to_owned(), pid.to_owned(), path.clone()))
        })
        .collect();
    sockets.sort();
    sockets
}

/// Asks every orchestrator and worker of this host, or those of one kind, all at once.
pub fn ask(kind: Option<Kind>, level: Level) -> Vec<Answer> {
    let folder = folder();
    // Root may ask whom it likes.
    if !nix::unistd::getuid().is_root() && check_owner(&folder).is_err() {
        return Vec::new();
    }
    let mut sockets = sockets(&folder);
    sockets.retain(|(found, ..)| kind.is_none_or(|kind| found == kind.name()));
    std::thread::scope(|scope| {
        let asked: Vec<_> = sockets
            .into_iter()
            .map(|(kind, pid, path)| (kind, pid, scope.spawn(move || ask_one(&path, level))))
            .collect();
        asked
            .into_iter()
            .map(|(kind, pid, report)| Answer {
                kind,
                pid,
                report: report.join().unwrap_or_else(|_| Err("it could not be asked".to_owned())),
            })
            .collect()
    })
}

fn ask_one(path: &Path, level: Level) -> std::result::Result<Report, String> {
    let answered = request(path, level).map_err(|error| match error.kind() {
        ErrorKind::ConnectionRefused => "it is dead: nobody answers on its socket".to_owned(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "it stands still: no answer in time".to_owned(),
        _ => format!("it cannot be asked: {error}"),
    })?;
    let (head, body) = answered.split_once("\r\n\r\n").unwrap_or_default();
    let well = head.split(' ').nth(1) == Some("200");
    let body = serde_json::from_str(body).map_err(|_| format!("it answered {:?}", head.lines().next().unwrap_or_default()))?;
    Ok(Report { well, body })
}

/// HTTP/1.0, where the end of the answer is the end of the connection.
fn request(path: &Path, level: Level) -> io::Result<String> {
    let deadline = Instant::now() + level.patience();
    let mut stream = UnixStream::connect(path)?;
    stream.set_write_timeout(Some(level.patience()))?;
    write!(stream, "GET {} HTTP/1.0\r\n\r\n", level.path())?;
    let mut answer = Vec::new();
    let mut part = [0; 16_384];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part)? {
            0 => return Ok(String::from_utf8_lossy(&answer).into_owned()),
            read => answer.extend_from_slice(&part[..read]),
        }
    }
}
