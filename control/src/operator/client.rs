//! A client of the operator socket: one connection, one request at a time, a deadline on every answer.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::fault::{Fault, Kind, Words, reason};
use crate::host::endpoint;
use crate::host::paths::HOST_CTL;
use crate::operator::api::{CaptureBegun, CaptureRequest, ErrorData, Event};

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
    within: Duration,
    last: u64,
}

impl Client {
    /// Connects to the daemon at `path`, which may take `within` for each answer.
    ///
    /// # Errors
    /// Nobody listens there, or the caller may not connect.
    pub fn connect(path: &Path, within: Duration) -> Result<Client, Fault> {
        let until = Instant::now() + within;
        let stream = loop {
            match endpoint::connect(path) {
                Ok(stream) => break stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(unreachable(path, &error)),
            }
        };
        stream
            .set_read_timeout(Some(within))
            .map_err(|error| Fault::system("cannot set a deadline", error))?;
        stream
            .set_write_timeout(Some(within))
            .map_err(|error| Fault::system("cannot set a deadline", error))?;
        Ok(Client { stream: BufReader::new(stream), path: path.to_owned(), within, last: 0 })
    }

    /// Calls a method (see [`crate::operator::api`]) and reads its answer.
    ///
    /// # Errors
    /// The method's own, no answer in time, or a connection that broke.
    pub fn call<P: Serialize, R: DeserializeOwned>(&mut self, method: &str, params: &P) -> Result<R, Fault> {
        self.last += 1;
        let request = json!({ "jsonrpc": "2.0", "id": self.last, "method": method, "params": params });
        let sent = self.stream.get_mut().write_all(format!("{request}\n").as_bytes());
        // The daemon may have answered and hung up before it read everything: its answer says why.
        let answer = match (sent, self.read_line()) {
            (_, Ok(answer)) => answer,
            (Err(error), Err(_)) => return Err(self.broken(&error)),
            (Ok(()), Err(fault)) => return Err(fault),
        };
        if let Some(error) = answer.get("error") {
            return Err(fault_of(error));
        }
        let result = answer.get("result").cloned().unwrap_or(Value::Null);
        serde_json::from_value(result).map_err(|error| {
            Fault::new(Kind::Runtime, format!("the daemon's answer is not understood: {error}"))
        })
    }

    /// Has frames captured: the connection, on which pcapng follows, and what of that has come already.
    ///
    /// # Errors
    /// As for [`Client::call`].
    pub(crate) fn capture(mut self, request: &CaptureRequest) -> Result<(UnixStream, Vec<u8>), Fault> {
        let _: CaptureBegun = self.call("capture", request)?;
        let first = self.stream.buffer().to_vec();
        Ok((self.stream.into_inner(), first))
    }

    /// Where the daemon listens.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How long it may take for an answer.
    pub(crate) fn within(&self) -> Duration {
        self.within
    }

    /// Waits for the next event of a daemon that this client follows. No deadline.
    ///
    /// # Errors
    /// The daemon is gone.
    pub fn next_event(&mut self) -> Result<Event, Fault> {
        let _ = self.stream.get_ref().set_read_timeout(None);
        let mut message = self.read_line()?;
        serde_json::from_value(message["params"].take()).map_err(|error| {
            Fault::new(Kind::Runtime, format!("the daemon's event is not understood: {error}"))
        })
    }

    fn read_line(&mut self) -> Result<Value, Fault> {
        let mut line = Vec::new();
        match self.stream.read_until(b'\n', &mut line) {
            Ok(0) => Err(self.broken(&io::Error::other("the daemon closed the connection"))),
            Ok(_) => serde_json::from_slice(&line).map_err(|error| {
                Fault::new(Kind::Runtime, format!("the daemon's answer is not JSON: {error}"))
            }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Fault::new(
                Kind::Timeout,
                format!(
                    "ringwayd at {} did not answer within {} s",
                    self.path.display(),
                    self.within.as_secs()
                ),
            )
            .retryable()),
            Err(error) => Err(self.broken(&error)),
        }
    }

    fn broken(&self, error: &io::Error) -> Fault {
        let message = format!("lost ringwayd at {}: {}", self.path.display(), reason(error));
        Fault::new(Kind::Unreachable, message).retryable()
    }
}

fn unreachable(path: &Path, error: &io::Error) -> Fault {
    let message = format!("ringwayd is not reachable at {}: {}", path.display(), reason(error));
    if error.kind() == io::ErrorKind::PermissionDenied {
        let view = path.with_file_name("view.sock");
        let hint = match endpoint::connect(&view) {
            Ok(_) => {
                format!("to see and not to change: --ctl {}; or join the socket's group", view.display())
            }
            Err(_) => "join the socket's group, or ask its owner".to_owned(),
        };
        let fault = Fault::new(Kind::Permission, message).hint(hint);
        return match std::fs::metadata(path) {
            Ok(meta) => fault.held_by(format!(
                "uid {}, gid {}, mode {:o}",
                meta.uid(),
                meta.gid(),
                meta.mode() & 0o777
            )),
            Err(_) => fault,
        };
    }
    let mut hint = format!("ringwayd --ctl {}; or name its socket by --ctl or RINGWAY_CTL", path.display());
    if let Some(of_the_host) = beside(path, Path::new(HOST_CTL)) {
        hint += &format!("; {of_the_host}");
    }
    Fault::new(Kind::Unreachable, message).hint(hint).retryable()
}

/// What to do where nothing answers at a path, and the host's own daemon has its socket elsewhere: a user's `ringway` looks for a
/// daemon of the user's own.
fn beside(path: &Path, host: &Path) -> Option<String> {
    if path == host {
        return None;
    }
    let named =
        format!("the host's ringwayd is at {0}: --ctl {0}, or export RINGWAY_CTL={0}", host.display());
    match std::fs::metadata(host) {
        Ok(_) => Some(named),
        // It is not said what is in there.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Some(format!("{named}, once you are in its group"))
        }
        Err(_) => None,
    }
}

fn fault_of(error: &Value) -> Fault {
    let message = error["message"].as_str().unwrap_or("the daemon refused");
    let Ok(data) = serde_json::from_value::<ErrorData>(error["data"].clone()) else {
        return Fault::new(Kind::Runtime, message);
    };
    let ErrorData { kind, held_by, hint, path, given, expected, retryable, retry_after_ms } = data;
    let is_told = given.is_some() || !expected.is_empty();
    let words = is_told.then(|| Box::new(Words { given, expected }));
    Fault { kind, message: message.to_owned(), held_by, hint, path, words, retryable, retry_after_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemon_of_the_host_is_named_where_none_of_the_users_own_answers() {
        let dir = tempfile::tempdir().unwrap();
        let (own, host) = (dir.path().join("own.sock"), dir.path().join("ctl.sock"));
        assert_eq!(beside(&own, &host), None);
        std::fs::write(&host, "").unwrap();
        let hint = beside(&own, &host).unwrap();
        assert!(hint.ends_with(&format!("or export RINGWAY_CTL={}", host.display())), "{hint}");
        // It is that one that does not answer.
        assert_eq!(beside(&host, &host), None);
    }
}
