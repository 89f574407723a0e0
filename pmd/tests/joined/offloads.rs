//! Offloads: passed on untouched where both agreed, done where the receiver did not, refused where the frame does not bear them
//! out.

use super::*;

const OFFLOADING: Features = Features(
    Features::VERSION_1.0 | F_MRG_RXBUF.0 | F_CSUM.0 | F_HOST_TSO4.0 | F_GUEST_CSUM.0 | F_GUEST_TSO4.0,
);

#[test]
fn offloads_that_both_agreed_on_pass_through_untouched() {
    let engine = engine(1);
    for (one, other) in all_formats() {
        let mut link = link();
        let offloading = Setup { features: OFFLOADING, buffer: 4096, ..Setup::default() };
        let mut a = Nic::new(&mut *link, "a", Setup { format: one, ..offloading }, &engine);
        let mut b = Nic::new(&mut *link, "b", Setup { format: other, ..offloading }, &engine);
        a.start(1);
        b.start(1);
        b.post(0, 40);
        let (sent, claim) = large(b.mac, a.mac, 60_000, 1448);
        a.send(0, claim, &sent);
        assert_eq!(b.expect(0, 1)[0], (claim, sent));
        assert_eq!((b.stats(0).segmented, b.stats(0).checksums), (0, 0));
        // A claim of a verified checksum, and a lie about the headers' length, are not passed on.
        let (sent, _) = large(b.mac, a.mac, 1000, 1448);
        let checksum_only = NetHeader::from_bytes(&[3, 0, 200, 0, 0, 0, 34, 0, 16, 0, 0, 0]);
        a.send(0, checksum_only, &sent);
        let got = b.expect(0, 1)[0].0;
        assert_eq!(got, NetHeader::from_bytes(&[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]));
    }
}

#[test]
fn what_the_receiver_did_not_agree_on_is_done_for_it() {
    let engine = patient_engine();
    let plain = Features::VERSION_1 | F_MRG_RXBUF;
    for (features, buffer) in
        [(plain, 2048), (Features::VERSION_1, 2048), (plain | F_GUEST_CSUM, 300), (plain, 200)]
    {
        let mut link = link();
        let mut a = Nic::new(&mut *link, "a", Setup { features: OFFLOADING, ..Setup::default() }, &engine);
        let mut b = Nic::new(&mut *link, "b", Setup { features, buffer, ..Setup::default() }, &engine);
        a.start(1);
        b.start(1);
        let (sent, claim) = large(b.mac, a.mac, 30_000, 1448);
        let expected: Vec<u8> = sent[54..].to_vec();
        a.send(0, claim, &sent);
        // Fewer buffers than the segments take: more come while they wait. The frame is neither lost nor doubled.
        let mut whole = Vec::new();
        let mut count = 0;
        let deadline = Instant::now() + SOON;
        while whole.len() < expected.len() || b.stats(0).segmented == 0 {
            assert!(Instant::now() < deadline, "{} bytes", whole.len());
            if b.posted[0].len() < 16 {
                b.post(0, 16);
            }
            for (header, mut frame) in b.received(0) {
                assert!(frame.len() <= 1514);
                if features.contains(F_GUEST_CSUM) {
                    let head = &frame[..frame.len().min(HEAD_BYTES)];
                    let offload = check(header, Offloads::CHECKSUM, frame.len() as u32, head).unwrap();
                    let Offload::Checksum { start, offset } = offload else { panic!("{offload:?}") };
                    complete_checksum(&mut frame, start, offset);
                } else {
                    assert_eq!(header, NetHeader::default());
                }
                whole.extend(payload(&frame));
                count += 1;
            }
        }
        assert_eq!(whole, expected);
        assert_eq!(count, 30_000usize.div_ceil(1448));
        assert_eq!((b.stats(0).segmented, b.stats(0).segments), (1, count as u64));
        // A checksum alone.
        let (sent, _) = large(b.mac, a.mac, 1000, 1448);
        b.post(0, 16);
        a.send(0, NetHeader::from_bytes(&[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]), &sent);
        let (_, mut frame) = b.expect(0, 1).remove(0);
        if features.contains(F_GUEST_CSUM) {
            complete_checksum(&mut frame, 34, 16);
        }
        assert_eq!(payload(&frame), sent[54..]);
    }
}

#[test]
fn lies_about_offloads_are_dropped_by_name_and_harm_nobody() {
    let engine = engine(1);
    let mut link = link();
    let mut a = Nic::new(&mut *link, "a", Setup { features: OFFLOADING, ..Setup::default() }, &engine);
    let mut b = Nic::new(&mut *link, "b", Setup::default(), &engine);
    a.start(1);
    b.start(1);
    b.post(0, 8);
    let (sent, _) = large(b.mac, a.mac, 3000, 1448);
    for lie in [
        // Checksum beyond the end; in the Ethernet header; no segment size; UDP that is TCP; unknown kind.
        [1, 0, 0, 0, 0, 0, 0xff, 0xff, 16, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 4, 0, 2, 0, 0, 0],
        [1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0],
        [1, 5, 54, 0, 100, 0, 34, 0, 6, 0, 0, 0],
        [1, 77, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0],
    ] {
        a.send(0, NetHeader::from_bytes(&lie), &sent);
    }
    a.expect_drops(1, DropReason::BadOffload, 5);
    // Segments longer than the MTU.
    let (sent, claim) = large(b.mac, a.mac, 6000, 3000);
    a.send(0, claim, &sent);
    a.expect_drops(1, DropReason::Oversize, 1);
    a.send_plain(0, &frame(b.mac, a.mac, 64, 1));
    b.expect(0, 1);
}
