//! A frame that was cut while it was carried, and of which a part was delivered when something changed.

use super::*;

#[test]
fn frame_of_which_some_segments_were_delivered_goes_on_where_it_was_when_pumps_are_made_anew() {
    let engine = patient_engine();
    let mut link = link();
    let offloads = F_CSUM | F_HOST_TSO4;
    let sends = Setup { features: Setup::default().features | offloads, pairs: 2, ..Setup::default() };
    let mut a = Nic::new(&mut *link, "a", sends, &engine);
    let mut b = Nic::new(&mut *link, "b", Setup::default(), &engine);
    a.start(2);
    b.start(1);
    let (bytes, claim) = large(b.mac, a.mac, 10_000, 1000);
    // Room for three segments of ten.
    b.post(0, 3);
    a.send(0, claim, &bytes);
    let mut arrived = b.expect(0, 3);
    // Another pair of the sender stops and starts: the pump that holds the frame is made anew, several times.
    for _ in 0..5 {
        a.device.queues().stop(1, WITHIN).unwrap();
        a.start_pair(1, true).unwrap();
    }
    b.post(0, 20);
    arrived.extend(b.expect(0, 7));
    std::thread::sleep(Duration::from_millis(50));
    assert!(b.received(0).is_empty(), "delivered twice");
    let sent: Vec<u8> = (0..10_000usize).map(|at| (at * 7) as u8).collect();
    let got: Vec<u8> = arrived.iter().flat_map(|(_, frame)| payload(frame)).collect();
    assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
    // The next one goes from its start.
    a.send(0, claim, &bytes);
    let got: Vec<u8> = b.expect(0, 10).iter().flat_map(|(_, frame)| payload(frame)).collect();
    assert!(got == sent);
}

#[test]
fn frame_whose_sender_stops_in_the_middle_of_it_is_neither_delivered_twice_nor_lost_untold() {
    for format in [Format::Split, Format::Packed] {
        let engine = patient_engine();
        let mut link = link();
        let features = Setup::default().features | F_CSUM | F_HOST_TSO4;
        let mut a = Nic::new(&mut *link, "a", Setup { format, features, ..Setup::default() }, &engine);
        let mut b = Nic::new(&mut *link, "b", Setup::default(), &engine);
        a.goes_on = true;
        a.start(1);
        b.start(1);
        let (bytes, claim) = large(b.mac, a.mac, 10_000, 1000);
        // Room for three segments of ten.
        b.post(0, 3);
        a.send(0, claim, &bytes);
        let first = b.expect(0, 3);
        a.stop();
        assert_eq!(a.drops(1, DropReason::TxDisabled), 1, "{format:?}: the rest of it is counted");
        a.start_pair(0, true).unwrap();
        b.post(0, 20);
        std::thread::sleep(Duration::from_millis(50));
        assert!(b.received(0).is_empty(), "{format:?}: delivered twice");
        // The next one is whole, and a stop between two frames loses none.
        for _ in 0..2 {
            a.send(0, claim, &bytes);
            let got: Vec<u8> = b.expect(0, 10).iter().flat_map(|(_, frame)| payload(frame)).collect();
            let sent: Vec<u8> = (0..10_000usize).map(|at| (at * 7) as u8).collect();
            assert!(got == sent && payload(&first[0].1) == sent[..1000]);
            a.stop();
            a.start_pair(0, true).unwrap();
            b.post(0, 20);
        }
        assert_eq!(a.drops(1, DropReason::TxDisabled), 1);
    }
}
