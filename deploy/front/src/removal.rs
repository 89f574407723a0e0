//! Removes a device and looks when its function's IOMMU group can be opened again. The group is the device's still when `dev.del` has
//! been answered, since the host's reset and its close come after.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;

/// Does so; tells in milliseconds how long a run of a program takes here, when the answer came and how much later the group could be
/// opened, and in which order it was.
pub(crate) fn run(device: &str, group: &str) -> Result<()> {
    let mut pace = Duration::ZERO;
    for _ in 0..3 {
        let begun = Instant::now();
        Command::new(RINGWAY).args(["dev", "show"]).stdin(Stdio::null()).stdout(Stdio::null()).status()?;
        pace = pace.max(begun.elapsed());
    }
    let group = format!("/dev/vfio/{group}");
    let is_free = || File::options().read(true).write(true).open(&group).is_ok();
    let mut operator = UnixStream::connect(OPERATOR)?;
    let (mut answer, request) = (
        String::new(),
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"dev.del","params":{{"name":"{device}"}}}}"#),
    );
    let begun = Instant::now();
    writeln!(operator, "{request}")?;
    BufReader::new(&operator).read_line(&mut answer)?;
    let was_free = is_free();
    let answered = begun.elapsed();
    if !answer.contains("result") {
        return Err(format!("dev.del: {answer}").into());
    }
    while !is_free() {
        if begun.elapsed() > LIMIT {
            return Err(format!("{group} is not free after {LIMIT:?}").into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let order = if was_free { "not seen" } else { "answered first" };
    let open = begun.elapsed() - answered;
    println!("{} {} {} {order}", pace.as_millis(), answered.as_millis(), open.as_millis());
    Ok(())
}

const RINGWAY: &str = "/usr/bin/ringway";
const OPERATOR: &str = "/run/ringway/ctl.sock";
const LIMIT: Duration = Duration::from_secs(30);
