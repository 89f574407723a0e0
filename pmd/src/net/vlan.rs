//! VLANs of a bridge's ports (IEEE 802.1Q): which of them a port carries, with their tag or without, and the frames of a
//! burst as each port gets them.
//!
//! ```text
//!   access port of VLAN 100     untagged --\                                 /--> tag 100   trunk that carries 100
//!                               tag 0      --> VLAN 100: learned, looked up --
//!   trunk that carries 100      tag 100  --/                                 \--> untagged  access port of VLAN 100
//! ```
//!
//! A tag is looked at once, on our copy of a frame's beginning, and what goes on begins with that copy, with its tag put
//! in, taken out, or as it was: the rest of the frame is copied once, as everywhere, from another place of its sender's
//! buffer. A frame that would be left with another tag in front when it leaves without its own is not sent there: who is in
//! one VLAN reaches no other by a tag behind the tag.
//!
//! Works on private copies. Budget of what a pump calls: no allocation, no lock, no system call, no panic.

use std::fmt;

use ringway_ring::chain::Burst;

use super::VLAN_TAG;
use super::frame::{ADDRESSES, Frame, Frames, Head};
use super::offload::{HEAD_BYTES, Offload};
use super::side::Load;
use crate::counters::DropReason;

/// The VLANs of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vlans {
    tagged: Set,
    untagged: Set,
    /// What is sent without a VLAN is in this one.
    pvid: Option<u16>,
}

/// A set of VLANs, a bit each.
type Set = [u64; 64];

/// In which VLAN a frame is, and how it said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// The VLAN.
    pub vid: u16,
    form: Form,
    /// Without its tag, it begins with another one.
    is_stacked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Untagged,
    Tagged,
    /// A tag that has a priority and no VLAN.
    Priority,
}

impl Tag {
    /// As a number, for [`Tag::from_bits`]; never 0.
    #[inline]
    pub(super) fn to_bits(self) -> u16 {
        let form = match self.form {
            Form::Untagged => 1,
            Form::Tagged => 2,
            Form::Priority => 3,
        };
        self.vid & VID | form << 12 | u16::from(self.is_stacked) << 14
    }

    /// The tag that such a number is of; None of 0.
    #[inline]
    pub(super) fn from_bits(bits: u16) -> Option<Tag> {
        let form = match bits >> 12 & 3 {
            1 => Form::Untagged,
            2 => Form::Tagged,
            3 => Form::Priority,
            _ => return None,
        };
        Some(Tag { vid: bits & VID, form, is_stacked: bits >> 14 & 1 != 0 })
    }
}

impl Vlans {
    /// A port in no VLAN, which carries nothing.
    pub const NONE: Vlans = Vlans { tagged: [0; 64], untagged: [0; 64], pvid: None };

    /// What a port has of which nobody said anything, on a bridge that looks at VLANs: VLAN 1, without a tag.
    pub fn default_of_a_port() -> Vlans {
        let mut vlans = Vlans::NONE;
        vlans.add(1, 1, true, true);
        vlans
    }

    /// Reads them as an operator writes them: `100 pvid untagged,200-210`, each VLAN or range with what `bridge vlan add`
    /// says of it; `none` for none at all.
    ///
    /// # Errors
    /// A sentence that says what is not understood.
    pub fn parse(text: &str) -> Result<Vlans, String> {
        let mut vlans = Vlans::NONE;
        if text == "none" {
            return Ok(vlans);
        }
        for item in text.split(',') {
            let mut words = item.split_whitespace();
            let (first, last) = words.next().and_then(range).ok_or_else(|| {
                format!(
                    "`{}` begins with no VLAN: {LEAST} to {MOST}, or a range of them",
                    item.trim().escape_debug()
                )
            })?;
            let (mut pvid, mut untagged) = (false, false);
            for word in words {
                match word {
                    "pvid" => pvid = true,
                    "untagged" => untagged = true,
                    other => {
                        return Err(format!("`{}`: pvid and untagged are known", other.escape_debug()));
                    }
                }
            }
            if pvid && (first != last || vlans.pvid.is_some()) {
                return Err("only one VLAN can be the pvid".to_owned());
            }
            vlans.add(first, last, pvid, untagged);
        }
        Ok(vlans)
    }

    /// Adds a range of VLANs, as `bridge vlan add` does: those that are there are as it says from then on.
    pub fn add(&mut self, first: u16, last: u16, pvid: bool, untagged: bool) {
        for vid in first..=last.min(MOST) {
            put(&mut self.tagged, vid, !untagged);
            put(&mut self.untagged, vid, untagged);
        }
        if pvid {
            self.pvid = Some(first);
        } else if self.pvid.is_some_and(|pvid| (first..=last).contains(&pvid)) {
            self.pvid = None;
        }
    }

    /// Takes a range of VLANs away. False: the port has not all of them.
    pub fn remove(&mut self, first: u16, last: u16) -> bool {
        let has = |vid| has(&self.tagged, vid) || has(&self.untagged, vid);
        if !(first..=last).all(has) {
            return false;
        }
        for vid in first..=last {
            put(&mut self.tagged, vid, false);
            put(&mut self.untagged, vid, false);
        }
        self.pvid = self.pvid.filter(|pvid| !(first..=last).contains(pvid));
        true
    }

    /// The tag that a frame of the port's own would have which nobody tagged.
    pub fn own(&self) -> Option<Tag> {
        Some(Tag { vid: self.pvid?, form: Form::Untagged, is_stacked: false })
    }

    /// The VLAN of a frame that comes from the port; `head` is its beginning, of which at least [`LOOKED_AT`] bytes were
    /// read, or all that it has.
    ///
    /// # Errors
    /// It goes no further.
    #[inline]
    pub fn admit(&self, frame: &Frame, head: &Head) -> Result<Tag, DropReason> {
        let [.., a, b, c, d, e, f] = *head.first_chunk::<LOOKED_AT>().unwrap_or(&[0; LOOKED_AT]);
        let outer = u16::from_be_bytes([a, b]);
        if outer != VLAN {
            let is_stacked = is_tag(outer);
            // Its headers are read no further than two tags.
            if is_stacked && matches!(frame.offload, Offload::Segment { .. }) {
                return Err(DropReason::BadOffload);
            }
            let vid = self.pvid.ok_or(DropReason::Vlan)?;
            return Ok(Tag { vid, form: Form::Untagged, is_stacked });
        }
        if frame.len < LOOKED_AT as u32 {
            return Err(DropReason::Runt);
        }
        // What would be summed up begins behind the tag.
        if matches!(frame.offload, Offload::Checksum { start, .. } if usize::from(start) < LOOKED_AT) {
            return Err(DropReason::BadOffload);
        }
        let is_stacked = is_tag(u16::from_be_bytes([e, f]));
        match u16::from_be_bytes([c, d]) & VID {
            0 => {
                let vid = self.pvid.ok_or(DropReason::Vlan)?;
                Ok(Tag { vid, form: Form::Priority, is_stacked })
            }
            vid if self.holds(vid) => Ok(Tag { vid, form: Form::Tagged, is_stacked }),
            _ => Err(DropReason::Vlan),
        }
    }

    /// Whether frames like this one go to the port: Some(true), with a tag.
    #[inline]
    pub fn carries(&self, tag: Tag) -> Option<bool> {
        if has(&self.tagged, tag.vid) {
            return Some(true);
        }
        (has(&self.untagged, tag.vid) && !tag.is_stacked).then_some(false)
    }

    /// Whether it carries this VLAN at all.
    pub fn holds(&self, vid: u16) -> bool {
        has(&self.tagged, vid) || has(&self.untagged, vid)
    }

    /// Each run of VLANs that are alike: the first, the last, whether it is the pvid, whether they go without a tag.
    pub fn runs(&self) -> Vec<(u16, u16, bool, bool)> {
        let mut runs: Vec<(u16, u16, bool, bool)> = Vec::new();
        for vid in LEAST..=MOST {
            let untagged = has(&self.untagged, vid);
            if !untagged && !has(&self.tagged, vid) {
                continue;
            }
            let pvid = self.pvid == Some(vid);
            match runs.last_mut() {
                Some((_, last, false, alike)) if *last + 1 == vid && *alike == untagged && !pvid => {
                    *last = vid
                }
                _ => runs.push((vid, vid, pvid, untagged)),
            }
        }
        runs
    }
}

impl fmt::Display for Vlans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = self.runs();
        if runs.is_empty() {
            return f.write_str("none");
        }
        for (nth, (first, last, pvid, untagged)) in runs.into_iter().enumerate() {
            let comma = if nth > 0 { "," } else { "" };
            write!(f, "{comma}{first}")?;
            if first != last {
                write!(f, "-{last}")?;
            }
            f.write_str(if pvid { " pvid" } else { "" })?;
            f.write_str(if untagged { " untagged" } else { "" })?;
        }
        Ok(())
    }
}

/// Reads a VLAN, or a range of them.
pub fn range(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|vid| is_plain && (LEAST..=MOST).contains(vid))
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    number(first).zip(number(last)).filter(|(first, last)| first <= last)
}

/// A frame is led by a tag of a VLAN, a provider's, or one of those before they were agreed upon.
fn is_tag(ether_type: u16) -> bool {
    matches!(ether_type, VLAN | 0x88a8 | 0x9100 | 0x9200 | 0x9300)
}

#[inline]
fn has(set: &Set, vid: u16) -> bool {
    set.get(usize::from(vid / 64)).is_some_and(|word| word >> (vid % 64) & 1 != 0)
}

fn put(set: &mut Set, vid: u16, is_in: bool) {
    if let Some(word) = set.get_mut(usize::from(vid / 64)) {
        *word = *word & !(1 << (vid % 64)) | u64::from(is_in) << (vid % 64);
    }
}

/// How many of a bridge's ports carry each VLAN: so that frames of one that nobody else has cost no look at every port.
#[derive(Debug, Clone)]
pub struct Carriers(Box<[Count]>);

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    /// All of them.
    all: u16,
    /// Those that have its frames with their tag, and so also frames with another one behind it.
    tagged: u16,
}

impl Carriers {
    /// Of ports with these VLANs. Takes time in proportion to what they carry: for sessions.
    pub fn new<'a>(ports: impl Iterator<Item = &'a Vlans>) -> Carriers {
        let mut counts = vec![Count::default(); usize::from(MOST) + 1];
        for port in ports {
            for (word, (tagged, untagged)) in (0u16..).zip(port.tagged.iter().zip(&port.untagged)) {
                let mut left = tagged | untagged;
                while left != 0 {
                    let bit = left.trailing_zeros() as u16;
                    left &= left - 1;
                    if let Some(count) = counts.get_mut(usize::from(word * 64 + bit)) {
                        count.all += 1;
                        count.tagged += u16::from(tagged >> bit & 1 != 0);
                    }
                }
            }
        }
        Carriers(counts.into())
    }

    /// One of the ports carries frames like this one.
    #[inline]
    pub(super) fn has_any(&self, tag: Tag) -> bool {
        let count = self.0.get(usize::from(tag.vid)).copied().unwrap_or_default();
        (if tag.is_stacked { count.tagged } else { count.all }) > 0
    }

    /// A port other than this one, which has these VLANs, carries frames like this one.
    #[inline]
    fn has_other(&self, tag: Tag, own: &Vlans) -> bool {
        let count = self.0.get(usize::from(tag.vid)).copied().unwrap_or_default();
        let count = if tag.is_stacked { count.tagged } else { count.all };
        count > u16::from(own.carries(tag).is_some())
    }
}

/// The VLANs of a burst, and its frames as ports get them.
#[derive(Debug)]
pub struct Dresser {
    tags: [Tag; Burst::CHAINS],
    /// Of the run in hand: without tag, and with one.
    forms: [Dressed; 2],
    carriers: Carriers,
}

#[derive(Debug)]
struct Dressed {
    frames: [Frame; Burst::CHAINS],
    heads: [Head; Burst::CHAINS],
    is_made: bool,
}

/// What is done to a frame's beginning.
#[derive(Clone, Copy)]
enum Change {
    PutIn,
    TakeOut,
    /// The tag gets the VLAN, and keeps its priority.
    Name,
}

impl Dresser {
    /// For bursts of any kind.
    pub fn new(carriers: Carriers) -> Box<Dresser> {
        let none = Tag { vid: 0, form: Form::Untagged, is_stacked: false };
        let dressed = || Dressed {
            frames: [Frames::EMPTY; Burst::CHAINS],
            heads: [[0; HEAD_BYTES]; Burst::CHAINS],
            is_made: false,
        };
        Box::new(Dresser { tags: [none; Burst::CHAINS], forms: [dressed(), dressed()], carriers })
    }

    /// A port other than this one, which has these VLANs, carries frames like this one.
    #[inline]
    pub fn has_other(&self, tag: Tag, own: &Vlans) -> bool {
        self.carriers.has_other(tag, own)
    }

    /// Takes note of the tag of a frame.
    #[inline]
    pub fn note(&mut self, nth: usize, tag: Tag) {
        if let Some(place) = self.tags.get_mut(nth) {
            *place = tag;
        }
    }

    /// The tag of the frames from `begin` on, and where the frames end that are alike in this, `end` at most. They are the
    /// run in hand.
    pub fn take_up(&mut self, begin: usize, end: usize) -> Option<(Tag, usize)> {
        self.forms.iter_mut().for_each(|form| form.is_made = false);
        let (first, rest) = self.tags.get(begin..end)?.split_first()?;
        Some((*first, begin + 1 + rest.iter().take_while(|tag| *tag == first).count()))
    }

    /// Those frames, as a port gets them that has them with a tag or without.
    pub fn dress<'a>(&'a mut self, load: Load<'a>, tag: Tag, with_tag: bool) -> Load<'a> {
        let change = match (tag.form, with_tag) {
            (Form::Untagged, false) | (Form::Tagged, true) => return load,
            (Form::Untagged, true) => Change::PutIn,
            (Form::Priority, true) => Change::Name,
            (Form::Tagged | Form::Priority, false) => Change::TakeOut,
        };
        let [without, with] = &mut self.forms;
        let form = if with_tag { with } else { without };
        if !form.is_made {
            form.is_made = true;
            let to = form.frames.iter_mut().zip(&mut form.heads);
            for ((frame, head), (to_frame, to_head)) in load.frames.iter().zip(load.heads).zip(to) {
                *to_frame = dressed(frame, head, change, tag.vid, to_head);
            }
        }
        let count = load.frames.len();
        // Where the frame would begin, were all of it in its sender's buffer. Nothing in front of what was not read before is
        // read from there.
        let skip = match change {
            Change::PutIn => load.skip.wrapping_sub(TAG_BYTES),
            Change::TakeOut => load.skip.wrapping_add(TAG_BYTES),
            Change::Name => load.skip,
        };
        let frames = form.frames.get(..count).unwrap_or_default();
        Load { frames, heads: form.heads.get(..count).unwrap_or_default(), skip, ..load }
    }
}

/// One frame, and the beginning that it has from then on.
#[inline]
fn dressed(frame: &Frame, head: &Head, change: Change, vid: u16, to: &mut Head) -> Frame {
    let known = head.get(..frame.looked_at.into()).unwrap_or_default();
    let (both, rest) = known.split_at_checked(ADDRESSES).unwrap_or_default();
    let (tag, rest, by) = match change {
        Change::PutIn => (Some(vid), rest, VLAN_TAG.cast_signed()),
        Change::TakeOut => (None, rest.get(TAG_BYTES..).unwrap_or_default(), -VLAN_TAG.cast_signed()),
        Change::Name => {
            let [high, low] = [rest.get(2), rest.get(3)].map(|byte| byte.copied().unwrap_or(0));
            let tci = u16::from_be_bytes([high, low]) & !VID | vid;
            (Some(tci), rest.get(TAG_BYTES..).unwrap_or_default(), 0)
        }
    };
    let mut at = 0;
    let mut write = |bytes: &[u8]| {
        if let Some(to) = to.get_mut(at..at + bytes.len()) {
            to.copy_from_slice(bytes);
            at += bytes.len();
        }
    };
    write(both);
    if let Some(tci) = tag {
        write(&VLAN.to_be_bytes());
        write(&tci.to_be_bytes());
    }
    write(rest);
    Frame {
        len: frame.len.saturating_add_signed(by),
        offload: frame.offload.moved(by as i16),
        looked_at: at as u8,
        ..*frame
    }
}

/// A tag of a VLAN (IEEE 802.1Q §9.6, table 9-1).
const VLAN: u16 = 0x8100;
/// The part of a tag that is the VLAN.
const VID: u16 = 0xfff;
/// Bytes of a tag.
const TAG_BYTES: usize = VLAN_TAG as usize;

/// VLANs that a frame can be in (IEEE 802.1Q §9.6, table 9-2).
const LEAST: u16 = 1;
const MOST: u16 = 4094;

/// Bytes of a frame that are looked at for its VLAN: addresses, tag, and the type of what follows.
pub const LOOKED_AT: usize = 18;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_bridge_vlan_and_read_back_as_they_are_written() {
        for (text, written) in [
            ("100 pvid untagged", "100 pvid untagged"),
            ("1-4094", "1-4094"),
            (" 7 untagged , 5-6,8 untagged pvid, 9", "5-6,7 untagged,8 pvid untagged,9"),
            ("10,11,12,13 pvid,14", "10-12,13 pvid,14"),
            ("5,5 untagged", "5 untagged"),
            ("none", "none"),
        ] {
            let vlans = Vlans::parse(text).unwrap();
            assert_eq!(vlans.to_string(), written, "{text}");
            assert_eq!(Vlans::parse(written).unwrap(), vlans);
        }
        for (text, wrong) in [
            ("", "begins with no VLAN"),
            ("0", "1 to 4094"),
            ("4095", "1 to 4094"),
            ("7-5", "begins with no VLAN"),
            ("+7", "begins with no VLAN"),
            ("pvid 5", "begins with no VLAN"),
            ("5 tagged", "`tagged`: pvid and untagged"),
            ("5-6 pvid", "only one VLAN"),
            ("5 pvid,6 pvid", "only one VLAN"),
            ("5 none", "`none`"),
        ] {
            let why = Vlans::parse(text).unwrap_err();
            assert!(why.contains(wrong), "{text}: {why}");
        }
    }

    #[test]
    fn adding_and_removing_is_that_of_bridge_vlan() {
        let mut vlans = Vlans::parse("100 pvid untagged,200-202").unwrap();
        vlans.add(300, 300, true, true);
        assert_eq!(vlans.to_string(), "100 untagged,200-202,300 pvid untagged");
        // Added once more, it is as was said the last time.
        vlans.add(300, 300, false, false);
        assert_eq!(vlans.to_string(), "100 untagged,200-202,300");
        assert!(!vlans.remove(202, 203), "not all of them are there");
        assert!(vlans.remove(201, 202) && vlans.remove(100, 100));
        assert_eq!(vlans.to_string(), "200,300");
        assert!(vlans.own().is_none());
    }

    fn looked_at(bytes: &[u8], offload: Offload) -> (Frame, Head) {
        let (mut head, looked_at) = ([0; HEAD_BYTES], bytes.len().min(LOOKED_AT));
        head[..looked_at].copy_from_slice(&bytes[..looked_at]);
        let frame = Frame { len: bytes.len() as u32, offload, looked_at: looked_at as u8, ..Frames::EMPTY };
        (frame, head)
    }

    #[test]
    fn frame_is_in_the_vlan_that_its_tag_and_its_port_say_and_else_in_none() {
        let vlans = Vlans::parse("100 pvid untagged,200").unwrap();
        let frame = |types: &[u8]| [&[2u8; 12], types, &[0; 46]].concat();
        let admitted = |types: &[u8]| {
            let (frame, head) = looked_at(&frame(types), Offload::None);
            vlans.admit(&frame, &head).map(|tag| (tag.vid, tag.form, tag.is_stacked))
        };
        assert_eq!(admitted(&[8, 0]), Ok((100, Form::Untagged, false)));
        assert_eq!(admitted(&[0x81, 0, 0xe0, 0, 8, 0]), Ok((100, Form::Priority, false)));
        assert_eq!(admitted(&[0x81, 0, 0xe0, 100, 8, 0]), Ok((100, Form::Tagged, false)));
        assert_eq!(admitted(&[0x81, 0, 0, 200, 8, 0]), Ok((200, Form::Tagged, false)));
        assert_eq!(admitted(&[0x81, 0, 0, 100, 0x81, 0]), Ok((100, Form::Tagged, true)));
        assert_eq!(admitted(&[0x88, 0xa8, 0, 200]), Ok((100, Form::Untagged, true)));
        for vid in [99u16, 101, 201, 4095] {
            let [high, low] = vid.to_be_bytes();
            assert_eq!(admitted(&[0x81, 0, high, low]), Err(DropReason::Vlan), "{vid}");
        }
        // A tag, and nothing behind it.
        let (short, head) = looked_at(&frame(&[0x81, 0, 0, 100])[..16], Offload::None);
        assert_eq!(vlans.admit(&short, &head), Err(DropReason::Runt));
        // What is to be summed up would begin in the tag.
        let claim = Offload::Checksum { start: 14, offset: 0 };
        let (claims, head) = looked_at(&frame(&[0x81, 0, 0, 100, 8, 0]), claim);
        assert_eq!(vlans.admit(&claims, &head), Err(DropReason::BadOffload));
        // Where nothing is without a VLAN, what has none goes nowhere.
        let trunk = Vlans::parse("100").unwrap();
        let (plain, head) = looked_at(&frame(&[8, 0]), Offload::None);
        assert_eq!(trunk.admit(&plain, &head), Err(DropReason::Vlan));
        let (priority, head) = looked_at(&frame(&[0x81, 0, 0xe0, 0, 8, 0]), Offload::None);
        assert_eq!(trunk.admit(&priority, &head), Err(DropReason::Vlan));
    }

    #[test]
    fn tag_is_read_back_from_its_number() {
        for form in [Form::Untagged, Form::Tagged, Form::Priority] {
            for (vid, is_stacked) in [(0, false), (1, true), (MOST, true)] {
                let tag = Tag { vid, form, is_stacked };
                assert_eq!(Tag::from_bits(tag.to_bits()), Some(tag));
            }
        }
        assert_eq!(Tag::from_bits(0), None);
    }

    #[test]
    fn frame_leaves_without_its_tag_only_if_none_is_behind_it() {
        let tag = |vid, is_stacked| Tag { vid, form: Form::Tagged, is_stacked };
        let vlans = Vlans::parse("100 pvid untagged,200").unwrap();
        assert_eq!(vlans.carries(tag(100, false)), Some(false));
        assert_eq!(vlans.carries(tag(100, true)), None);
        assert_eq!(vlans.carries(tag(200, true)), Some(true));
        assert_eq!(vlans.carries(tag(300, false)), None);
        assert_eq!(Vlans::NONE.carries(tag(100, false)), None);
    }
}
