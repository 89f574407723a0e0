//! A place in a sequence of slices of guest memory: for headers and frames that are spread over many descriptors.

use ringway_ring::guest::HostSlice;

/// See the module's head.
pub(super) struct Cursor<'map, I> {
    current: Option<HostSlice<'map>>,
    rest: I,
}

impl<'map, I: Iterator<Item = HostSlice<'map>>> Cursor<'map, I> {
    /// At the first byte.
    pub(super) fn new(mut slices: I) -> Self {
        Cursor { current: slices.next(), rest: slices }
    }

    /// The bytes in line, never empty; None at the end.
    #[inline]
    fn head(&mut self) -> Option<HostSlice<'map>> {
        while let Some(slice) = self.current {
            if slice.len() > 0 {
                return Some(slice);
            }
            self.current = self.rest.next();
        }
        None
    }

    #[inline]
    fn advance(&mut self, bytes: usize) {
        self.current = self.current.map(|slice| slice.part(bytes, usize::MAX));
    }

    pub(super) fn skip(&mut self, mut bytes: usize) {
        while bytes > 0
            && let Some(head) = self.head()
        {
            let step = head.len().min(bytes);
            self.advance(step);
            bytes -= step;
        }
    }

    pub(super) fn read(&mut self, mut into: &mut [u8]) {
        while !into.is_empty()
            && let Some(head) = self.head()
        {
            let step = head.read(into);
            self.advance(step);
            into = into.get_mut(step..).unwrap_or_default();
        }
    }

    pub(super) fn write(&mut self, mut from: &[u8]) {
        while !from.is_empty()
            && let Some(head) = self.head()
        {
            let step = head.write(from);
            self.advance(step);
            from = from.get(step..).unwrap_or_default();
        }
    }

    pub(super) fn copy_to<'to, J: Iterator<Item = HostSlice<'to>>>(
        &mut self,
        to: &mut Cursor<'to, J>,
        mut bytes: usize,
    ) {
        while bytes > 0
            && let (Some(from), Some(into)) = (self.head(), to.head())
        {
            let step = into.copy_from(from.part(0, bytes));
            self.advance(step);
            to.advance(step);
            bytes -= step;
        }
    }
}
