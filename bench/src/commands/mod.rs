//! The commands, a file each: arguments in, text or JSON out. What they measure is the library's.

pub(crate) mod blk;
pub(crate) mod compare;
pub(crate) mod idle;
pub(crate) mod limits;
pub(crate) mod net;
pub(crate) mod report;
pub(crate) mod ring;
pub(crate) mod scale;
pub(crate) mod tap;
pub(crate) mod targets;

use ringway_bench::record::Record;

/// Why a command failed; it is printed behind `error:`.
pub(crate) type Failure = Box<dyn std::error::Error>;

/// Prints a record as a line of JSON.
pub(crate) fn print_json(record: &Record) -> Result<(), Failure> {
    println!("{}", serde_json::to_string(record)?);
    Ok(())
}
