//! The list of capabilities in a function's configuration space (PCI 3.0 §6.7), walked within bounds: a function may say
//! anything.

use super::{View, Width};

/// A capability, from its first byte on.
#[derive(Debug, Clone)]
pub struct Capability {
    /// What kind: 0x11 MSI-X, 0x09 of the vendor's own.
    pub id: u8,
    /// Its bytes, to the end of the first 256 of configuration space.
    pub body: View,
}

/// The capabilities, in the order of the list. A loop or a pointer out of the space ends it.
pub fn capabilities(config: &View) -> Vec<Capability> {
    let mut found = Vec::new();
    let has_list = config.read16(STATUS) & STATUS_CAP_LIST != 0 && config.read16(0) != 0xffff;
    let mut next = if has_list { u64::from(config.read8(FIRST)) & !3 } else { 0 };
    let mut seen = [false; 64];
    while (HEADER_END..SPACE).contains(&next) {
        let Some(was_seen) = seen.get_mut(next as usize / 4).filter(|seen| !**seen) else { break };
        *was_seen = true;
        let Some(body) = config.part(next, SPACE - next) else { break };
        next = body.read(1, Width::B1) & !3;
        found.push(Capability { id: body.read8(0), body });
    }
    found
}

const STATUS: u64 = 0x06;
const STATUS_CAP_LIST: u16 = 1 << 4;
const FIRST: u64 = 0x34;
const HEADER_END: u64 = 0x40;
/// Bytes of configuration space that capabilities of this list lie in.
const SPACE: u64 = 256;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::bus::pci::Registers;

    struct Space(Vec<u8>);

    impl Registers for Space {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }
        fn read(&self, at: u64, width: Width) -> u64 {
            let bytes = self.0[at as usize..(at + width.bytes()) as usize].iter().rev();
            bytes.fold(0, |value, byte| value << 8 | u64::from(*byte))
        }
        fn write(&self, _: u64, _: Width, _: u64) {}
    }

    fn view(fill: impl FnOnce(&mut [u8])) -> View {
        let mut bytes = vec![0; 256];
        bytes[6] = 0x10;
        fill(&mut bytes);
        View::new(Arc::new(Space(bytes)))
    }

    #[test]
    fn list_is_walked_in_order_and_ends_at_its_end() {
        let config = view(|bytes| {
            bytes[0x34] = 0x98;
            bytes[0x98..0x9a].copy_from_slice(&[0x11, 0x40]);
            bytes[0x40..0x42].copy_from_slice(&[0x09, 0x84]);
            bytes[0x84..0x86].copy_from_slice(&[0x10, 0]);
        });
        let ids: Vec<u8> = capabilities(&config).iter().map(|capability| capability.id).collect();
        assert_eq!(ids, [0x11, 0x09, 0x10]);
        assert_eq!(capabilities(&config)[0].body.size(), 256 - 0x98);
    }

    #[test]
    fn loops_bad_pointers_and_functions_that_are_gone_end_the_walk() {
        for (next, count) in [(0x40, 1), (0x41, 1), (0x10, 1), (0xfc, 2)] {
            let config = view(|bytes| {
                bytes[0x34] = 0x40;
                bytes[0x41] = next;
            });
            assert_eq!(capabilities(&config).len(), count, "{next:#x}");
        }
        assert!(capabilities(&view(|bytes| bytes[6] = 0)).is_empty());
        assert!(capabilities(&view(|bytes| bytes.fill(0xff))).is_empty());
    }

    proptest! {
        #[test]
        fn any_space_ends_the_walk(bytes in proptest::collection::vec(any::<u8>(), 256)) {
            let found = capabilities(&View::new(Arc::new(Space(bytes))));
            prop_assert!(found.len() <= 48);
        }
    }
}
