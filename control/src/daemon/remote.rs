//! How other threads reach the control thread: messages, and an eventfd that wakes it.

use std::sync::Arc;

use crossbeam::channel::Sender;
use ringway_pmd::notify::EventFd;
use ringway_pmd::vdpa::{DeviceHost, ManagementDevice};
use serde_json::Value;

use crate::fault::Fault;
use crate::frontends::reports::Reports;
use crate::frontends::session::Reporter;
use crate::host::endpoint::Inherited;
use crate::operator::api::DeviceEntry;
use crate::operator::capture::End;

/// What reaches the control thread from other threads.
pub(crate) enum Message {
    /// A session that had told nothing has told something.
    News(u64),
    /// A device that had told nothing has told something.
    Upcall(u64),
    /// A request from within the process.
    Call { method: String, params: Value, reply: Sender<Result<String, Fault>> },
    /// A driver within the process brings a management device.
    Register { mgmtdev: Box<dyn ManagementDevice>, reply: Sender<Result<(), Fault>> },
    /// It takes it back.
    Unregister { name: String, why: String, reply: Sender<Result<(), Fault>> },
    /// Make a device on a socket that came with the process.
    Adopt { entry: DeviceEntry, socket: Inherited, reply: Sender<Result<(), Fault>> },
    /// READY=1 was sent, with this line; an empty one: it was not taken.
    Ready { status: String },
    /// A scraper asks for what is measured.
    Metrics { reply: crate::operator::metrics::Reply },
    /// A capture has its memory.
    CaptureBegun { id: u64 },
    /// A capture has ended, or could not begin; None: its thread panicked.
    CaptureEnded { id: u64, outcome: Option<Result<End, Fault>> },
    /// Stop.
    Stop,
}

/// How other threads reach the control thread. What waits there is bounded by who sends: one word of news from each
/// session, one call from each thread that waits for its answer.
#[derive(Clone)]
pub(crate) struct Remote {
    pub(super) sender: Sender<Message>,
    pub(super) wake: Arc<EventFd>,
}

impl Remote {
    /// How a session that is about to start reports, and where its reports are taken from.
    pub(crate) fn reports(&self) -> (Reporter, Arc<Reports>) {
        let (remote, reports) = (self.clone(), Arc::<Reports>::default());
        let pending = Arc::clone(&reports);
        let reporter = move |session, report| {
            if pending.put(report) {
                remote.send(Message::News(session));
            }
        };
        (Arc::new(reporter), reports)
    }

    /// The line on which device `id` tells what it has to tell.
    pub(crate) fn device_host(&self, id: u64) -> DeviceHost {
        let remote = self.clone();
        DeviceHost::new(move || {
            remote.send(Message::Upcall(id));
        })
    }

    /// Never waits. False: the control thread is gone.
    pub(crate) fn send(&self, message: Message) -> bool {
        let sent = self.sender.send(message).is_ok();
        self.wake.signal();
        sent
    }
}
