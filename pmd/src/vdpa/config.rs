//! Configuration space (virtio 1.3 §2.5): bytes at an offset, little-endian, as the class's section lays them out.

/// A device's configuration space. Read and written by the session, for the front-end.
pub trait ConfigSpace {
    /// Reads `bytes.len()` bytes at `at`; zeros beyond its end.
    fn read(&self, at: usize, bytes: &mut [u8]);
    /// Writes bytes at `at`, all or none. The default takes what is there already, as a migration repeats it.
    ///
    /// # Errors
    /// A field is not the driver's to write, or is beyond the end.
    fn write(&mut self, at: usize, bytes: &[u8]) -> Result<(), ConfigError> {
        let mut there = vec![0; bytes.len()];
        self.read(at, &mut there);
        if there == bytes { Ok(()) } else { Err(ConfigError::ReadOnly) }
    }
    /// Another number whenever something changed that the driver did not write, so that who reads field by field knows
    /// whether they belong together (virtio 1.3 §2.5.1).
    fn generation(&self) -> u32 {
        0
    }
}

/// Why a write to configuration space was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The driver may not write there.
    #[error("read only")]
    ReadOnly,
    /// The field cannot have this value.
    #[error("not a value of this field")]
    Value,
}
