//! The commands of a document, to be run as they are written there.
//!
//! | block begins with | is run |
//! | --- | --- |
//! | ```` ```sh ```` | on the host |
//! | ```` ```sh guest ```` | in the guest, on its console |
//! | ```` ``` ```` | not |

use std::fmt;

use crate::error::{Error, Result};

/// Where commands are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the host.
    Host,
    /// In the guest.
    Guest,
}

/// Commands that stand together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Where they are run.
    pub place: Place,
    /// The first one's line in the document, from 1.
    pub line: usize,
    /// The commands.
    pub text: String,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} ({:?}):\n{}", self.line, self.place, self.text)
    }
}

/// The blocks of a document that are to be run, in their order.
pub fn blocks(document: &str) -> Result<Vec<Block>> {
    let mut found = Vec::new();
    // Of the block that is being read: whether it is to be run, and what was read of it.
    let mut open: Option<(Option<Place>, usize, String)> = None;
    for (idx, line) in document.lines().enumerate() {
        let Some(mark) = line.strip_prefix("```") else {
            if let Some((_, _, text)) = &mut open {
                text.push_str(line);
                text.push('\n');
            }
            continue;
        };
        open = match (open.take(), mark) {
            (Some((place, line, text)), "") => {
                found.extend(place.map(|place| Block { place, line, text }));
                None
            }
            (None, "") => Some((None, idx + 2, String::new())),
            (None, "sh") => Some((Some(Place::Host), idx + 2, String::new())),
            (None, "sh guest") => Some((Some(Place::Guest), idx + 2, String::new())),
            _ => return Err(Error::new(format!("line {}: a block of an unknown kind: {line}", idx + 1))),
        };
    }
    match open {
        Some((_, line, _)) => Err(Error::new(format!("the block that begins at line {line} has no end"))),
        None => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_what_is_only_shown() {
        let text = "# A\n\n```sh\none\ntwo\n```\n\n```\nshown\n```\n```sh guest\nthree\n```\n";
        let block = |place, line, text: &str| Block { place, line, text: text.into() };
        let wanted = vec![block(Place::Host, 4, "one\ntwo\n"), block(Place::Guest, 12, "three\n")];
        assert_eq!(blocks(text).unwrap(), wanted);
        assert!(blocks("```sh\none\n").is_err());
        assert!(blocks("```perl\none\n```\n").is_err());
    }
}
