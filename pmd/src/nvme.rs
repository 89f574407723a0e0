//! An NVMe controller, driven from here: its registers and life, its admin queue, queue pairs for I/O, the commands on them.
//!
//! ```text
//!   Controller --+-- registers: enable, disable, is it still there
//!                +-- admin queue: who it is, its namespaces, queue pairs made and deleted
//!                +-- QueuePair, one for each who has work: submit, ring ... reap
//!                      commands, whose data are the pieces that `data` cut a request into
//! ```
//!
//! A library: it knows neither guests nor devices. What a controller says is a claim: every wait has an end, each completion is
//! checked against what is outstanding, and all ones is a controller that is gone. Pages are of 4 KiB, which every controller has
//! that Linux drives. Nothing here interrupts: who waits for commands looks.
//!
//! The numbers are those of the NVM Express base specification 1.4 and the NVM command set.

// Commands, and how each ended.
pub mod command;
// A controller's life.
pub mod controller;
// Where a command's data are.
pub mod data;
// What a controller and its namespaces say they are.
pub mod identify;
// Submission and completion queue.
pub mod queue;
// Its registers.
pub mod registers;

/// What a controller did wrong, or that it is gone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NvmeFault {
    /// Its registers read all ones.
    #[error("the controller does not answer any more")]
    Gone,
    /// Its registers read nothing but zeros, which none does that is reached.
    #[error(
        "the controller's registers cannot be reached: all of them read 0 (a VF of QEMU before 10.1.2 needs its BAR below 4 GiB)"
    )]
    NotDecoded,
    /// A virtual function whose controller its primary has not brought online, or has taken offline.
    #[error(
        "the controller is offline: its primary has to give it queues and bring it online (nvme virt-mgmt /dev/nvmeN -c CNTLID \
         -r 0 -a 8 -n 2, -r 1 -a 8 -n 1, -a 9)"
    )]
    Offline,
    /// It says that it failed, until it is reset.
    #[error("the controller says that it failed (CSTS.CFS), and has to be reset")]
    Failed,
    /// It is none such as can be driven from here.
    #[error("not a controller that can be driven: {0}")]
    NotOne(String),
    /// It did not do something in time.
    #[error("the controller did not {what} within {} ms", within.as_millis())]
    Late {
        /// What.
        what: &'static str,
        /// The time that it had.
        within: std::time::Duration,
    },
    /// It refused a command.
    #[error("the controller refuses to {what}: {status}")]
    Refused {
        /// To do what.
        what: &'static str,
        /// How it said so.
        status: command::Status,
    },
    /// What it said cannot be.
    #[error("the controller says what cannot be: {0}")]
    Lied(String),
    /// Not the controller: the host lacks something for it.
    #[error("{0}")]
    Host(String),
}

/// Bytes of a page, as the controller counts: CC.MPS is 0.
pub const PAGE: u64 = 4096;
