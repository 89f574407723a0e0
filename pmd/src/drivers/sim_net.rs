//! `sim/net`: a network device whose wire is a loop.
