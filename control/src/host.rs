//! What the process takes of its host: files, sockets, locks, cores, accounts, its log.

// Where things are unless told otherwise.
pub(crate) mod paths;

// Users and groups, looked up by a thread that may wait.
pub(crate) mod accounts;
// The file that runs.
pub(crate) mod program;
// Cores, claimed among processes.
pub(crate) mod claims;
// Sockets that are listened at.
pub(crate) mod endpoint;
// How long nobody served.
pub(crate) mod gap;
// Locks on directories and sockets.
pub(crate) mod guard;
// Files that are read whole, up to a bound.
pub(crate) mod input;
// Looks at what was made.
pub(crate) mod look;
// The log, on a thread of its own.
pub(crate) mod log;
// What is logged, and in which form.
pub(crate) mod logging;
// The service manager that started this process.
pub(crate) mod manager;
// Who is at the other end of a socket.
pub(crate) mod peer;
// What workers leave of their cores.
pub(crate) mod share;
// What stands at a path.
pub(crate) mod standing;
// Which cores are one physical core, and which memory is near.
pub(crate) mod topology;
// Directories, watched.
pub(crate) mod watch;
// Workers, watched.
pub(crate) mod watchdog;
