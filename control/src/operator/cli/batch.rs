//! `ringway -b FILE`: commands from a file or from standard input, one a line, as `ip -b` and `bridge -b` read them.
//!
//! Words are split as a shell does, with quotes; `#` begins a comment; a line that ends in a backslash goes on. It ends at the
//! first command that fails, unless it is forced to go on, and nothing is undone of what was done before.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;

use crate::fault::{Fault, Kind};
use crate::operator::cli::errors::Voice;
use crate::operator::cli::ringway::Cli;
use crate::operator::cli::{parse, run};

/// The longest command, in bytes: as long as a request of it may be.
const LONGEST_LINE: u64 = 256 * 1024;

/// Runs the commands of a batch as they come, with the options that `ringway` itself was given.
///
/// # Errors
/// The first that failed, told already: what is returned has only its kind.
pub(super) fn run_all(file: &Path, outer: &Cli) -> Result<(), Told> {
    let voice = if outer.json { Voice::Json } else { Voice::Text };
    let name = file.display().to_string();
    let mut lines = Lines::open(file).map_err(|fault| {
        voice.tell(&fault, &[], None);
        Told(fault.kind)
    })?;
    let mut first = None;
    loop {
        let mut args = vec![OsString::from("ringway")];
        let (done, is_readable) = match lines.next() {
            Ok(None) => break,
            Ok(Some(words)) => {
                args.extend(words.into_iter().map(OsString::from));
                (run_line(args.clone(), outer), true)
            }
            // What follows a line that cannot be read whole is no command.
            Err(fault) => (Err(fault), false),
        };
        let Err(fault) = done else { continue };
        voice.tell(&fault, &args, Some((&name, lines.number)));
        // What is accepted is done, and the next line may go on from there.
        let is_done = fault.kind == Kind::NotApplied;
        if !is_readable || (!is_done && !outer.force) {
            return Err(Told(fault.kind));
        }
        let is_worse = first.is_none() || (first == Some(Kind::NotApplied) && !is_done);
        first = if is_worse { Some(fault.kind) } else { first };
    }
    first.map_or(Ok(()), |kind| Err(Told(kind)))
}

/// An error that was told already: its kind, for the exit code.
pub(super) struct Told(pub(super) Kind);

fn run_line(args: Vec<OsString>, outer: &Cli) -> Result<(), Fault> {
    let Some(mut cli) = parse(args, false)? else { return Ok(()) };
    if cli.batch.is_some() {
        return Err(Fault::usage("a batch within a batch").at("batch"));
    }
    cli.json |= outer.json;
    cli.pretty |= outer.pretty;
    cli.dry_run |= outer.dry_run;
    cli.ctl = cli.ctl.or_else(|| outer.ctl.clone());
    if cli.timeout == Cli::TIMEOUT {
        cli.timeout = outer.timeout;
    }
    run::run(cli, false)
}

/// The commands of a batch.
struct Lines<R> {
    reader: R,
    /// Lines that were read.
    read: usize,
    /// The line that the last command begins on, counted from 1.
    number: usize,
}

impl Lines<Box<dyn BufRead>> {
    fn open(file: &Path) -> Result<Lines<Box<dyn BufRead>>, Fault> {
        let reader: Box<dyn BufRead> = if file == Path::new("-") {
            Box::new(std::io::stdin().lock())
        } else {
            let opened = File::open(file).map_err(|error| {
                Fault::system(format!("cannot read {}", file.display()), error).at("batch")
            })?;
            Box::new(BufReader::new(opened))
        };
        Ok(Lines { reader, read: 0, number: 0 })
    }
}

impl<R: BufRead> Lines<R> {
    /// The words of the next command. None: there is none.
    fn next(&mut self) -> Result<Option<Vec<String>>, Fault> {
        loop {
            self.number = self.read + 1;
            let Some(text) = self.whole()? else { return Ok(None) };
            let words = shlex::split(&text).ok_or_else(|| Fault::usage("a quote is not closed"))?;
            if !words.is_empty() {
                return Ok(Some(words));
            }
        }
    }

    /// A line with those that it goes on on.
    fn whole(&mut self) -> Result<Option<String>, Fault> {
        let mut whole = Vec::new();
        loop {
            let left = LONGEST_LINE.saturating_sub(whole.len() as u64);
            let begin = whole.len();
            let read = (&mut self.reader).take(left + 1).read_until(b'\n', &mut whole);
            read.map_err(|error| Fault::system("cannot read the batch", error))?;
            if whole.len() as u64 > LONGEST_LINE {
                return Err(Fault::usage(format!("a command is longer than {LONGEST_LINE} bytes")));
            }
            if whole.len() == begin {
                break;
            }
            self.read += 1;
            let line = whole.strip_suffix(b"\n").unwrap_or(&whole);
            let Some(kept) = line.strip_suffix(b"\\").map(<[u8]>::len) else { break };
            whole.truncate(kept);
            whole.push(b' ');
        }
        if whole.is_empty() {
            return Ok(None);
        }
        String::from_utf8(whole).map(Some).map_err(|_| Fault::usage("this is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each command with its line, up to the first that is none.
    fn commands(text: &str) -> (Vec<(usize, String)>, Option<String>) {
        let mut lines = Lines { reader: text.as_bytes(), read: 0, number: 0 };
        let mut found = Vec::new();
        loop {
            match lines.next() {
                Ok(Some(words)) => found.push((lines.number, words.join("|"))),
                Ok(None) => return (found, None),
                Err(fault) => return (found, Some(format!("{} {}", lines.number, fault.message))),
            }
        }
    }

    #[test]
    fn lines_have_numbers_quotes_comments_and_go_on() {
        let text = "# a comment\n\ndev add name 'a b' # rest\n  dev set \\\n name c\n\nhello\\";
        let expected = [(3, "dev|add|name|a b"), (4, "dev|set|name|c"), (7, "hello")];
        let expected = expected.map(|(line, words)| (line, words.to_owned())).to_vec();
        assert_eq!(commands(text), (expected, None));
        assert_eq!(commands(""), (Vec::new(), None));
        let (found, why) = commands("hello\n\ndev \"x\nhello\n");
        assert_eq!((found.len(), why.as_deref()), (1, Some("3 a quote is not closed")));
    }

    #[test]
    fn command_is_taken_up_to_its_bound() {
        let bound = usize::try_from(LONGEST_LINE).unwrap();
        let (found, why) = commands(&"x".repeat(bound));
        assert_eq!((found.len(), why), (1, None));
        let (found, why) = commands(&"x".repeat(bound + 1));
        assert_eq!((found.len(), why.as_deref()), (0, Some("1 a command is longer than 262144 bytes")));
    }
}
