//! A command that is carried out in the background.

use std::thread::JoinHandle;

use ringway_lab::agent::Command;
use ringway_lab::error::{Context, Error, Result};
use serde_json::{Value, json};

use crate::{echo, tcp, udp};

/// A running command.
pub(crate) struct Job {
    thread: JoinHandle<Result<Value>>,
}

impl Job {
    /// Starts one of the commands that take long.
    pub(crate) fn start(command: Command) -> Result<Job> {
        if !matches!(command, Command::Echo(_) | Command::Tcp(_) | Command::UdpSend(_)) {
            return Err(Error::new(format!("not a command for the background: {command:?}")));
        }
        let thread = std::thread::Builder::new()
            .name("job".into())
            .spawn(move || match command {
                Command::Echo(order) => Ok(json!(echo::run(&order)?)),
                Command::Tcp(order) => Ok(json!(tcp::run(&order)?)),
                Command::UdpSend(order) => Ok(json!(udp::send(&order)?)),
                _ => Ok(Value::Null),
            })
            .context(|| "job thread".into())?;
        Ok(Job { thread })
    }

    /// Waits for its end and gives its answer.
    pub(crate) fn finish(self) -> Result<Value> {
        self.thread.join().map_err(|_| Error::new("the job's thread panicked"))?
    }
}
