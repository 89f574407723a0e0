//! A walk through a document: its commands one after the other, on a host of an operator's own and on the consoles of the guests that
//! the document has, each ending as it is shown and printing what is shown.
//!
//! What is not run by the walk is named by it, with who runs it; [`Walk::end`] holds that all of these are there. Used by one test's
//! thread.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::console::Console;
use crate::document::{self, HOST, Kind, Step};
use crate::ensure;
use crate::error::{Context, Error, Result};
use crate::host::{Host, Said, Terminal};
use crate::lab::Lab;

/// The walk.
#[derive(Debug)]
pub struct Walk<'lab> {
    lab: &'lab Lab,
    host: Host<'lab>,
    /// Where the next command of the host's is typed.
    typed: Terminal<'lab>,
    /// Where something still runs and says something now and then.
    left: Vec<Terminal<'lab>>,
    guests: BTreeMap<String, Console>,
    elsewhere: Vec<(&'static str, &'static str)>,
    left_out: BTreeSet<&'static str>,
    /// Parts of lines that are not always printed.
    sometimes: Vec<&'static str>,
}

impl<'lab> Walk<'lab> {
    /// Begins one. `elsewhere` has what it leaves out, each by its first line, with why; `sometimes` has parts of lines that are
    /// shown, and printed only now and then.
    pub fn begin(
        lab: &'lab Lab,
        elsewhere: &[(&'static str, &'static str)],
        sometimes: &[&'static str],
    ) -> Result<Walk<'lab>> {
        let mut host = Host::start(lab)?;
        let typed = host.terminal()?;
        let (elsewhere, sometimes) = (elsewhere.to_vec(), sometimes.to_vec());
        let (left, guests, left_out) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
        Ok(Walk { lab, host, typed, left, guests, elsewhere, left_out, sometimes })
    }

    /// The document's commands that are not left out. What is only shown has to be.
    pub fn steps(&mut self, document: &str) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        for block in document::blocks(document)? {
            if block.kind == Kind::Shown {
                ensure!(self.is_left_out(first_line(&block.text)), "nobody looks at what is shown: {block}");
            }
            for step in block.steps() {
                if !self.is_left_out(&key(&step)) {
                    steps.push(step);
                }
            }
        }
        Ok(steps)
    }

    fn is_left_out(&mut self, line: &str) -> bool {
        let named = self.elsewhere.iter().find(|(named, _)| *named == line);
        named.is_some_and(|(named, _)| {
            self.left_out.insert(named);
            true
        })
    }

    /// Runs a step as it is written.
    pub fn run(&mut self, step: &Step) -> Result<Said> {
        self.run_as(step, &step.command)
    }

    /// Runs a step with this command in the place of its own.
    pub fn run_as(&mut self, step: &Step, command: &str) -> Result<Said> {
        self.lab.say(format_args!("{}", key(step)));
        let said = match step.place.as_str() {
            HOST => self.typed.run(command)?,
            guest => self.guest(guest)?.run(command)?,
        };
        if !said.text.trim().is_empty() {
            self.lab.say(said.text.trim());
        }
        ensure!((said.code != 0) == step.fails(), "{step}: exit code {}\n{}", said.code, said.text);
        let is_sometimes = |line: &String| self.sometimes.iter().any(|part| line.contains(part));
        let shown: Vec<String> = step.shown.iter().filter(|line| !is_sometimes(line)).cloned().collect();
        if let Some(line) = document::missing(&shown, &said.text) {
            return Err(Error::new(format!(
                "{step}\nshown and not printed: {line}\nprinted:\n{}",
                said.text
            )));
        }
        // An operator reads on before the next command.
        std::thread::sleep(READS_ON);
        Ok(said)
    }

    /// Runs what the document does not have, on the host; it has to succeed.
    pub fn also(&mut self, command: &str) -> Result<String> {
        let said = self.typed.run(command)?;
        ensure!(said.code == 0, "{command}: exit code {}\n{}", said.code, said.text);
        Ok(said.text)
    }

    /// Runs what the document does not have, on a guest's console; it has to succeed.
    pub fn also_in(&mut self, guest: &str, command: &str) -> Result<String> {
        let said = self.guest(guest)?.run(command)?;
        ensure!(said.code == 0, "{command} in {guest}: exit code {}\n{}", said.code, said.text);
        Ok(said.text)
    }

    /// Leaves the terminal to what runs in it; the next command is typed in another one.
    pub fn leave(&mut self) -> Result<()> {
        let next = self.host.terminal()?;
        self.left.push(std::mem::replace(&mut self.typed, next));
        Ok(())
    }

    /// Starts a guest by a command that keeps the terminal it is typed in; the next command is typed in another one.
    pub fn boot(&mut self, name: &str, command: &str) -> Result<()> {
        self.lab.say(format_args!("$ {command}"));
        let next = self.host.terminal()?;
        let mut terminal = std::mem::replace(&mut self.typed, next);
        terminal.write(command)?;
        let console = Console::in_terminal(terminal).context(|| format!("the guest {name}"))?;
        self.guests.insert(name.to_string(), console);
        Ok(())
    }

    /// A guest's console.
    pub fn guest(&mut self, name: &str) -> Result<&mut Console> {
        self.guests.get_mut(name).ok_or_else(|| Error::new(format!("there is no guest {name}")))
    }

    /// Another terminal on the host.
    pub fn terminal(&mut self) -> Result<Terminal<'lab>> {
        self.host.terminal()
    }

    /// Ends it; all that it names as left out has to have been there.
    pub fn end(self) -> Result<()> {
        for (line, why) in &self.elsewhere {
            ensure!(self.left_out.contains(line), "the document has no `{line}` any more ({why})");
        }
        self.host.end()
    }
}

/// A step's first line, as it is written in the document.
pub fn key(step: &Step) -> String {
    let line = first_line(&step.command);
    if step.place == HOST { line.to_string() } else { format!("{}# {line}", step.place) }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Reads a document of `docs`.
pub fn page(name: &str) -> Result<String> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    std::fs::read_to_string(&path).context(|| path.display().to_string())
}

const READS_ON: Duration = Duration::from_millis(500);
