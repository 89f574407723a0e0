//! The lane, where its two ends meet.

use std::sync::Arc;

use loom::thread;
use ringway_ring::lane::{Closed, Sleeper, TakenBack, lane};

/// An entry is read whole or not at all, and once; its place, and what it names, are written again only when the reader is done with
/// it.
#[test]
fn entry_is_read_whole_and_once_and_its_place_is_not_written_before() {
    loom::model(|| {
        let (mut writer, mut reader) = lane(1, &Sleeper::new(), &Sleeper::new());
        let named = Arc::new(loom::cell::UnsafeCell::new(0));
        let ours = Arc::clone(&named);
        let other = thread::spawn(move || {
            let mut put = 0;
            for n in [1, 2] {
                // There is room only where nothing is out.
                if writer.room() > 0 {
                    ours.with_mut(|_| ());
                    writer.put(&[n, n]).unwrap();
                    put += 1;
                    writer.publish().unwrap();
                }
            }
            put
        });
        let mut read = 0;
        for _ in 0..2 {
            reader.look();
            let mut words = [0; 2];
            if reader.read(&mut words) {
                named.with(|_| ());
                read += 1;
                assert_eq!(words, [read, read]);
                reader.finish(1);
                reader.tell();
            }
        }
        let put = other.join().unwrap();
        assert!(read <= put);
    });
}

/// An entry that is published while the reader closes is counted by whoever closes or refused to the writer, never both, never
/// neither; and once the writer sees that it is closed, the reader reads nothing.
#[test]
fn closing_and_publishing_account_for_every_entry_once() {
    loom::model(|| {
        let (mut writer, mut reader) = lane(2, &Sleeper::new(), &Sleeper::new());
        // What an entry names, which the writer may take back once it is finished.
        let named = Arc::new(loom::cell::UnsafeCell::new(0));
        let theirs = Arc::clone(&named);
        let other = thread::spawn(move || {
            let mut read = 0;
            reader.look();
            if reader.read(&mut [0]) {
                read = 1;
                theirs.with(|_| ());
            }
            read + reader.close().0
        });
        let mut refused = 0;
        for n in [1, 2] {
            writer.put(&[n]).unwrap();
            if let Err(Closed { entries }) = writer.publish() {
                refused += entries;
            }
        }
        if writer.finished() == 2 {
            named.with_mut(|_| ());
        }
        assert_eq!(other.join().unwrap() + refused, 2);
        assert_eq!(writer.finished(), 2);
    });
}

/// What the writer takes back the reader does not read, and what the reader claims the writer does not take back; and once the reader has
/// passed over what was taken back, the lane goes on.
#[test]
fn entry_is_claimed_or_taken_back_and_the_lane_goes_on() {
    loom::model(|| {
        let (mut writer, mut reader) = lane(2, &Sleeper::new(), &Sleeper::new());
        let named = [(); 2].map(|()| Arc::new(loom::cell::UnsafeCell::new(0)));
        let theirs = named.clone();
        writer.put(&[1]).unwrap();
        writer.publish().unwrap();
        let other = thread::spawn(move || {
            let mut claimed = 0;
            for named in &theirs {
                if reader.look() == 0 || !reader.read(&mut [0]) {
                    continue;
                }
                match reader.claim() {
                    Ok(()) => {
                        named.with(|_| ());
                        claimed += 1;
                        reader.finish(1);
                    }
                    Err(TakenBack) => {
                        let more = reader.skip();
                        reader.finish(1 + more);
                    }
                }
                reader.tell();
            }
            (reader, claimed)
        });
        writer.put(&[2]).unwrap();
        writer.publish().unwrap();
        let kept = writer.take_back();
        // What is not the reader's is written again.
        named.iter().skip(kept as usize).for_each(|named| named.with_mut(|_| ()));
        let (mut reader, claimed) = other.join().unwrap();
        assert!(claimed <= kept);
        while reader.look() > 0 {
            reader.read(&mut [0]);
            let more = if reader.claim().is_err() { reader.skip() } else { 0 };
            reader.finish(1 + more);
        }
        reader.tell();
        assert_eq!((writer.finished(), writer.is_open()), (2, true));
        writer.put(&[3]).unwrap();
        writer.publish().unwrap();
        assert!(reader.look() == 1 && reader.read(&mut [0]) && reader.claim().is_ok());
    });
}

/// The reader runs all the while: what the writer takes back and puts in again in the same place, and what both name by the same buffer, it
/// reads as one or as the other and never while it is written, and it passes over nothing that is put in after the bar is lifted.
#[test]
fn places_are_written_again_across_a_bar_while_the_reader_runs() {
    loom::model(|| {
        let (mut writer, mut reader) = lane(1, &Sleeper::new(), &Sleeper::new());
        // What each entry names, one after the other.
        let named = Arc::new(loom::cell::UnsafeCell::new(0));
        let theirs = Arc::clone(&named);
        writer.put(&[1, 1]).unwrap();
        writer.publish().unwrap();
        let other = thread::spawn(move || {
            let (mut claimed, mut passed) = (Vec::new(), 0);
            for _ in 0..2 {
                let mut words = [0; 2];
                if reader.look() == 0 || !reader.read(&mut words) {
                    continue;
                }
                match reader.claim() {
                    Ok(()) => {
                        theirs.with(|_| ());
                        claimed.push(words);
                        reader.finish(1);
                    }
                    Err(TakenBack) => {
                        let more = reader.skip();
                        passed += 1 + more;
                        reader.finish(1 + more);
                    }
                }
                reader.tell();
            }
            (reader, claimed, passed)
        });
        let kept = writer.take_back();
        if kept == 0 {
            named.with_mut(|_| ());
        }
        // Once all is finished, and not before.
        let is_again = writer.finished() == 1 && writer.is_open();
        if is_again {
            named.with_mut(|_| ());
            writer.put(&[2, 2]).unwrap();
            writer.publish().unwrap();
        }
        let (mut reader, mut claimed, passed) = other.join().unwrap();
        assert_eq!(passed, 1 - kept);
        let mut words = [0; 2];
        if reader.look() == 1 && reader.read(&mut words) {
            assert_eq!(reader.claim(), Ok(()));
            claimed.push(words);
        }
        // The first if it was kept, the second if it was put in; both whole.
        let expected = [(kept == 1, [1, 1]), (is_again, [2, 2])];
        let expected: Vec<_> = expected.into_iter().filter(|(is, _)| *is).map(|(_, words)| words).collect();
        assert_eq!(claimed, expected);
    });
}

/// Entries that are claimed together are taken back together or not at all, with what is not published yet, and a second time as the first.
#[test]
fn entries_are_claimed_together_or_taken_back_together() {
    loom::model(|| {
        let (mut writer, mut reader) = lane(4, &Sleeper::new(), &Sleeper::new());
        let named = [(); 3].map(|()| Arc::new(loom::cell::UnsafeCell::new(0)));
        let theirs = named.clone();
        (1..3).for_each(|n| writer.put(&[n]).unwrap());
        writer.publish().unwrap();
        writer.put(&[3]).unwrap();
        let other = thread::spawn(move || {
            let read = reader.look();
            (0..read).for_each(|_| assert!(reader.read(&mut [0])));
            if reader.claim().is_err() {
                return (reader, 0);
            }
            theirs.iter().take(read).for_each(|named| named.with(|_| ()));
            reader.finish(read as u64);
            reader.tell();
            (reader, read as u64)
        });
        let kept = writer.take_back();
        named.iter().skip(kept as usize).for_each(|named| named.with_mut(|_| ()));
        assert_eq!(writer.take_back(), kept);
        writer.publish().unwrap();
        let (_reader, claimed) = other.join().unwrap();
        assert_eq!(claimed, kept);
        assert!(kept == 0 || kept == 2);
    });
}

/// What a reader that goes had claimed is its own until it is gone, and what it was done with is told apart from what is taken back.
#[test]
fn entries_are_taken_back_while_the_reader_goes() {
    loom::model(|| {
        let (mut writer, mut reader) = lane(2, &Sleeper::new(), &Sleeper::new());
        let named = [(); 2].map(|()| Arc::new(loom::cell::UnsafeCell::new(0)));
        let theirs = named.clone();
        (1..3).for_each(|n| writer.put(&[n]).unwrap());
        writer.publish().unwrap();
        let other = thread::spawn(move || {
            reader.look();
            assert!(reader.read(&mut [0]));
            if reader.claim().is_ok() {
                theirs[0].with(|_| ());
                reader.finish(1);
            }
            drop(reader);
        });
        let kept = writer.take_back();
        named.iter().skip(kept as usize).for_each(|named| named.with_mut(|_| ()));
        // All of one that is gone, or as many as it told.
        let finished = writer.finished();
        named.iter().take(finished as usize).for_each(|named| named.with_mut(|_| ()));
        other.join().unwrap();
        assert_eq!(writer.finished(), 2);
        assert!(writer.done() <= kept.min(1));
    });
}

/// An entry that names nothing is read and finished unclaimed. It is never said to be taken back once it is finished, and what is behind it is
/// claimed with it or taken back.
#[test]
fn entry_is_finished_unclaimed_and_the_next_is_claimed_or_taken_back() {
    loom::model(|| {
        let (mut writer, mut reader) = lane(2, &Sleeper::new(), &Sleeper::new());
        // What the second one names.
        let named = Arc::new(loom::cell::UnsafeCell::new(0));
        let theirs = Arc::clone(&named);
        (1..3).for_each(|n| writer.put(&[n]).unwrap());
        writer.publish().unwrap();
        let other = thread::spawn(move || {
            assert_eq!(reader.look(), 2);
            assert!(reader.read(&mut [0]));
            reader.finish(1);
            reader.tell();
            let mut words = [0];
            assert!(reader.read(&mut words) && words == [2]);
            let is_claimed = reader.claim().is_ok();
            if is_claimed {
                theirs.with(|_| ());
            } else {
                assert_eq!(reader.skip(), 0);
            }
            reader.finish(1);
            reader.tell();
            (reader, is_claimed)
        });
        let finished = writer.finished();
        let kept = writer.take_back();
        assert!(finished <= kept && kept <= 2);
        if kept < 2 {
            named.with_mut(|_| ());
        }
        let (mut reader, is_claimed) = other.join().unwrap();
        assert_eq!(is_claimed, kept == 2);
        // All was read or passed over: the lane goes on, and claims what comes next alone.
        assert_eq!((writer.finished(), writer.is_open()), (2, true));
        writer.put(&[3]).unwrap();
        writer.publish().unwrap();
        assert!(reader.look() == 1 && reader.read(&mut [0]) && reader.claim().is_ok());
    });
}

/// The reader that is about to sleep sees the entry, or its writer sees that it sleeps.
#[test]
fn no_entry_is_left_to_a_sleeper() {
    loom::model(|| {
        let to = Sleeper::new();
        let (mut writer, mut reader) = lane(1, &Sleeper::new(), &to);
        let other = thread::spawn(move || {
            writer.put(&[1]).unwrap();
            writer.publish().unwrap()
        });
        to.doze();
        let is_seen = reader.look() > 0;
        let is_woken = other.join().unwrap();
        assert!(is_seen || is_woken);
    });
}

/// The writer that is about to sleep sees what was finished, or closed, or the reader sees that it sleeps.
#[test]
fn nothing_finished_is_left_to_a_sleeper() {
    for closes in [false, true] {
        loom::model(move || {
            let from = Sleeper::new();
            let (mut writer, mut reader) = lane(1, &from, &Sleeper::new());
            writer.put(&[1]).unwrap();
            writer.publish().unwrap();
            let other = thread::spawn(move || {
                if closes {
                    return (reader.close().1, None);
                }
                reader.look();
                reader.read(&mut [0]);
                reader.finish(1);
                (reader.tell(), Some(reader))
            });
            from.doze();
            let is_seen = writer.finished() == 1;
            let (is_woken, _reader) = other.join().unwrap();
            assert!(is_seen || is_woken);
        });
    }
}
