//! What operators see and change of the log: its level, for all or for a device. Until the process ends, or a
//! file is applied: for good, it is said in the configuration file or on the command line.

use tracing::Level;

use crate::daemon::Daemon;
use crate::fault::{Fault, nearest, printable};
use crate::host::{log, logging};
use crate::operator::api::{LogSet, LogShow, Named};

/// Levels of a device, and the word for none of its own.
const OF_DEVICE: [(&str, Option<Level>); 3] =
    [("default", None), ("debug", Some(Level::DEBUG)), ("trace", Some(Level::TRACE))];

impl Daemon {
    pub(crate) fn show_log(&self) -> LogShow {
        let (level, to) = logging::now().unwrap_or_else(|| ("as its process says".to_owned(), "elsewhere"));
        let own = |device: &crate::devices::device::Device| {
            let level = device.shared.log_level()?;
            Some((device.name().to_owned(), level.as_str().to_lowercase()))
        };
        let dev: Named<String> = self.registry.devices().filter_map(own).collect();
        LogShow { level, to: to.to_owned(), dev, lost_lines: log::lost() }
    }

    /// Says whether it can be set: of a device, to which level.
    pub(crate) fn check_log(&self, set: &LogSet) -> Result<Option<Level>, Fault> {
        let Some(name) = &set.dev else { return logging::check(&set.level).map(|()| None) };
        self.find(name)?;
        let level = OF_DEVICE.iter().find(|(word, _)| *word == set.level);
        level.map(|(_, level)| *level).ok_or_else(|| {
            let words = OF_DEVICE.map(|(word, _)| word);
            let fault =
                Fault::usage(format!("`{}` is no level of a device", printable(&set.level))).at("level");
            let fault = fault.given(&set.level).expected(words);
            fault.hint(match nearest(&set.level, words) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("one of: {}; less than all is logged of none", words.join(", ")),
            })
        })
    }

    pub(crate) fn set_log(&self, set: &LogSet) -> Result<LogShow, Fault> {
        let level = self.check_log(set)?;
        match &set.dev {
            None => logging::set(&set.level)?,
            Some(name) => self.find(name)?.shared.set_log_level(level),
        }
        Ok(self.show_log())
    }
}
