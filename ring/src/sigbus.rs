//! Containment of faults in memory that a peer truncated.
//!
//! One process-wide SIGBUS handler with a lock-free table of guest regions. A fault at an unknown address gets the
//! default action; at a known one, the faulting page is replaced by an anonymous page, the region is marked poisoned
//! and execution goes on: the pump sees the poison after its burst.
