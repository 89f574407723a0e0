//! The kernel's log of a scenario: what must not be in it, and the IOMMU's faults by function.

use crate::ensure;
use crate::error::Result;

/// What the kernel logged since it was last read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelLog {
    text: String,
}

impl KernelLog {
    pub(super) fn new(text: String) -> KernelLog {
        KernelLog { text }
    }

    /// Its last lines.
    pub fn end(&self) -> String {
        let lines: Vec<&str> = self.text.lines().collect();
        lines[lines.len().saturating_sub(END_LINES)..].join("\n")
    }

    /// The functions, as `02:00.0`, whose accesses the IOMMU refused, one for each line that says so. The IOMMU may keep later
    /// faults to itself until the first is cleared: there is one line at least, not one for each.
    pub fn faulting(&self) -> Vec<&str> {
        self.text.lines().filter_map(faulting_function).collect()
    }

    /// An error that names the functions unless the IOMMU refused nothing; and one with the lines if the kernel warned of
    /// anything else that must not be.
    pub fn clean(&self) -> Result<()> {
        ensure!(self.faulting().is_empty(), "the IOMMU refused accesses of {:?}", self.faulting());
        self.no_complaint()
    }

    /// An error unless the IOMMU refused accesses of this function, and of no other.
    pub fn faults_only_of(&self, function: &str) -> Result<()> {
        let short = function.strip_prefix("0000:").unwrap_or(function);
        let faulting = self.faulting();
        ensure!(
            !faulting.is_empty() && faulting.iter().all(|other| *other == short),
            "accesses of {short} were to be refused, the IOMMU refused those of {faulting:?}"
        );
        self.no_complaint()
    }

    fn no_complaint(&self) -> Result<()> {
        let complaints: Vec<&str> = self.text.lines().filter(|line| is_complaint(line)).collect();
        ensure!(complaints.is_empty(), "the kernel complains:\n{}", complaints.join("\n"));
        Ok(())
    }
}

/// `DMAR: [DMA Read NO_PASID] Request device [02:00.0] fault addr …` is of 02:00.0.
fn faulting_function(line: &str) -> Option<&str> {
    let (_, fault) = line.split_once("DMAR: [DMA ")?;
    let (_, function) = fault.split_once("Request device [")?;
    function.split(']').next()
}

fn is_complaint(line: &str) -> bool {
    COMPLAINTS.iter().any(|complaint| line.contains(complaint))
}

/// Lines of a log that tell why something failed.
pub(super) const END_LINES: usize = 12;
const COMPLAINTS: [&str; 11] = [
    "BUG:",
    "WARNING:",
    "Oops",
    "Call Trace",
    "general protection",
    "segfault at",
    "trap invalid opcode",
    "blocked for more than",
    "Out of memory",
    "vfio_unpin",
    "INTR-REMAP: Request device",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_names_its_function() {
        let line = "[ 12.5] DMAR: [DMA Read NO_PASID] Request device [02:00.0] fault addr 0x900000000 [fault reason 0x06] PTE Read access is not set\n";
        let log = KernelLog::new(format!("[ 1.0] DMAR: IOMMU enabled\n{line}"));
        assert_eq!(log.faulting(), ["02:00.0"]);
        assert!(log.clean().unwrap_err().to_string().contains("02:00.0"));
        log.faults_only_of("0000:02:00.0").unwrap();
        assert!(log.faults_only_of("0000:01:10.0").is_err());
    }

    #[test]
    fn a_clean_log_is_one_without_complaints() {
        KernelLog::new("[ 1.0] igb 0000:01:00.0: 2 VFs allocated\n".into()).clean().unwrap();
        let log = KernelLog::new("[ 1.0] WARNING: CPU: 0 PID: 1 at mm/x.c\n".into());
        assert!(log.clean().unwrap_err().to_string().contains("mm/x.c"));
        assert!(log.faults_only_of("0000:02:00.0").is_err());
    }
}
